"""What the nodes of a run read of a shuffled epoch, simulated sample by sample, with and without lanes.

`python -m benchmarks.data.locality [--shards N] [--write]` prints the tables, or writes docs/benchmarks/locality.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.common.command import parser_of, run_benchmark
from benchmarks.common.markdown import table
from configs.recipe import Batch
from data.arrays import Ints
from data.batch import step_slices
from data.index.shuffle_blocks import GROUP_SAMPLES, split_into_blocks
from data.order.epochs import SampleStream
from data.order.global_batch import Arrangement
from data.order.mixture import Mixture, Portion

SHARD_SAMPLES = 1000
SAMPLE_BYTES = 19_000
RECORD_BYTES = 20_480  # with the headers and padding of an image and its label in a tar
PIECE_BYTES = 1 << 20  # what is fetched, checked and kept at once of a remote shard
GPUS = 8  # workers per node
WINDOW_BYTES = 256 << 20
SAMPLES_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class ClusterCase:
    """A global batch, dealt to `nodes` of GPUS workers each, with data.lanes `lanes`."""

    batch: int
    nodes: int
    lanes: int

    @property
    def micro(self) -> int:
        """So that every worker has one micro-batch; at least one sample."""
        return max(1, self.batch // (self.nodes * GPUS))


@dataclass(frozen=True)
class EpochReads:
    """Of one epoch: `pieces[n, p]` tells whether node n reads piece p."""

    pieces: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
    shards: int

    @property
    def node_bytes(self) -> Ints:
        """Of the pieces that each node reads."""
        return np.array(PIECE_BYTES * np.count_nonzero(self.pieces, axis=1))

    @property
    def node_shards(self) -> Ints:
        """How many shards each node reads something of."""
        per_shard = self.pieces.reshape(len(self.pieces), self.shards, -1)
        return np.array(np.count_nonzero(per_shard.any(axis=2), axis=1))


def stream_of(shards: int, lanes: int, window_bytes: int) -> SampleStream:
    """The order of a data set of equal shards; nothing is read."""
    groups = np.full(-(-SHARD_SAMPLES // GROUP_SAMPLES), GROUP_SAMPLES * SAMPLE_BYTES)
    groups[-1] = SHARD_SAMPLES % GROUP_SAMPLES * SAMPLE_BYTES
    blocks = split_into_blocks(np.full(shards, SHARD_SAMPLES), (groups for _ in range(shards)))
    return SampleStream(blocks, window_bytes, "synthetic", 1, lanes)


def samples_of(stream: SampleStream, batch: int, steps: range) -> Iterator[Ints]:
    """Sample ids of whole global batches, many at a time, in order of position."""
    arrangement = Arrangement(Mixture([Portion(1.0)]), [stream.count], stream.lanes, batch)
    at_once = max(1, SAMPLES_AT_ONCE // batch)
    for first in range(steps.start, steps.stop, at_once):
        placed = arrangement.at(first * batch, min(first + at_once, steps.stop) * batch)
        yield stream.locate(placed.items).sample_ids


def node_of_position(case: ClusterCase) -> Ints:
    """The node that reads each position of a global batch."""
    batch = Batch.model_validate({"global": case.batch, "micro": case.micro})
    found = np.empty(case.batch, np.int64)
    for rank in range(case.nodes * GPUS):
        for positions in step_slices(1, batch, rank, case.nodes * GPUS):
            found[positions.start : positions.stop] = rank // GPUS
    return found


@lru_cache(maxsize=4)
def epoch_reads(shards: int, case: ClusterCase, epoch: int) -> EpochReads:
    """Of the whole batches that lie in the epoch."""
    shard_pieces = -(-SHARD_SAMPLES * RECORD_BYTES // PIECE_BYTES)
    pieces = np.zeros((case.nodes, shards * shard_pieces), np.bool_)
    stream, nodes = stream_of(shards, case.lanes, WINDOW_BYTES), node_of_position(case)
    steps = range(-(-epoch * stream.count // case.batch), (epoch + 1) * stream.count // case.batch)
    for samples in samples_of(stream, case.batch, steps):
        shard, number = np.divmod(samples, SHARD_SAMPLES)
        readers = np.tile(nodes, len(samples) // case.batch)
        for offset in (number * RECORD_BYTES, number * RECORD_BYTES + SAMPLE_BYTES - 1):  # a sample may lie across two
            pieces[readers, shard * shard_pieces + offset // PIECE_BYTES] = True
    return EpochReads(pieces, shards)


def locality_row(shards: int, case: ClusterCase) -> list[str]:
    """The figures of one case, as cells."""
    first, second = (epoch_reads(shards, case, epoch) for epoch in range(2))
    whole_bytes = shards * SHARD_SAMPLES * RECORD_BYTES
    again = (first.pieces & second.pieces).sum() / second.pieces.sum()
    return [
        str(case.nodes),
        str(case.batch),
        str(case.lanes),
        f"{first.node_bytes.mean() / 1e9:,.1f}",
        f"{first.node_bytes.max() / 1e9:,.1f}",
        f"{first.node_bytes.sum() / whole_bytes:.2f}",
        f"{first.node_shards.mean():,.0f}",
        f"{first.node_shards.sum() / shards:.2f}",
        f"{again:.0%}",
    ]


def mixing_row(shards: int, lanes: int, window_bytes: int, batch: int = 256, batches: int = 200) -> list[str]:
    """Shards and blocks that a batch draws from, and shards that ten batches in a row do."""
    stream = stream_of(shards, lanes, window_bytes)
    middle = stream.count // batch // 2
    samples = np.concatenate(list(samples_of(stream, batch, range(middle, middle + batches)))).reshape(-1, batch)
    shard, number = np.divmod(samples, SHARD_SAMPLES)
    drawn = [len(np.unique(row)) for row in shard]
    blocks = [len(np.unique(row)) for row in shard * SHARD_SAMPLES + number // GROUP_SAMPLES]
    in_ten = [len(np.unique(shard[i : i + 10])) for i in range(batches - 10)]
    return [
        f"{window_bytes >> 20}",
        str(lanes),
        f"{np.mean(drawn):.0f}",
        f"{np.mean(blocks):.0f}",
        f"{np.mean(in_ten):.0f}",
    ]


def report(shards: int) -> str:
    """The report in Markdown, without a line end."""
    shapes = [(64, 4096, 1), (64, 4096, 64), (64, 1024, 1), (64, 1024, 64)]
    shapes += [(60, 4096, 1), (60, 4096, 64), (60, 4096, 512), (8, 1024, 1), (8, 1024, 64)]
    cases = [ClusterCase(batch, nodes, lanes) for nodes, batch, lanes in shapes]
    reads_head = ["nodes", "batch", "lanes", "GB per node", "most GB", "all / data", "shards per node",
                  "nodes per shard", "read before"]  # fmt: skip
    mixing_head = ["window, MiB", "lanes", "shards in a batch", "blocks in a batch", "shards in ten batches"]
    mixing = [mixing_row(shards, lanes, mib << 20) for mib in (64, 256, 512) for lanes in (1, 64)]
    return "\n\n".join(
        [
            "# Locality: what each node reads",
            f"`python -m benchmarks.data.locality --shards {shards} --write`: every sample of two epochs of a "
            f"synthetic set of {shards:,} shards × {SHARD_SAMPLES:,} samples of {SAMPLE_BYTES:,} bytes "
            f"({shards * SHARD_SAMPLES * RECORD_BYTES / 1e9:,.0f} GB), dealt by the loader's own code; "
            f"{GPUS} workers per node, data.shuffle_window_bytes {WINDOW_BYTES >> 20} MiB. A node is said to read the "
            f"pieces of {PIECE_BYTES >> 20} MiB in which its samples lie, once each: what it fetches of remote shards, "
            "given room to keep them. *all / data*: bytes that all nodes read together over the size of the set. "
            "*read before*: part of the second epoch's pieces that the same node had read in the first, so that they "
            "can come from its cache.",
            table(reads_head, [locality_row(shards, case) for case in cases]),
            "One lane spreads each window, and so each piece, over all nodes. With lanes, a batch is sorted by lane "
            "and dealt in contiguous slices: a node reads few lanes, a lane keeps its shards in every epoch, and the "
            "global batches are the same for any number of nodes. Where nodes do not divide data.lanes, a lane is read "
            "by two; more lanes make less of that.",
            "How well a batch of 256 is mixed: shards and blocks of 64 samples that it draws from. What is in use at "
            "once is the window, however many lanes share it. (webdataset's `shuffle(1000)`: 6.6 shards.)",
            table(mixing_head, mixing),
        ]
    )


def main() -> None:
    """Parse the command line, simulate, report."""
    parser = parser_of(__doc__)
    parser.add_argument("--shards", type=int, default=20_000)
    run_benchmark(parser, "locality.md", lambda arguments, _folder, _load: report(arguments.shards) + "\n")


if __name__ == "__main__":
    main()
