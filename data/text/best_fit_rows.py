"""Rows of whole documents: each shard is packed once, and its rows are then ordered as samples are."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from data.arrays import Array, Ints, Say
from data.index import sidecar
from data.index.catalog import Catalog
from data.index.shuffle_blocks import ShuffleBlocks
from data.order.epochs import SampleStream
from data.text import best_fit_packing
from data.text.best_fit_packing import PackedRows
from data.text.concat_packing import TokenSpan
from data.text.document_lengths import DocumentLengths
from data.text.documents import Documents


class FittedRows:
    """`spans` of the rows that a stream over `row_blocks` of the packs locates."""

    def __init__(
        self,
        packs: Sequence[PackedRows],
        sample_starts: Ints,
        lengths: DocumentLengths,
        row_tokens: int,
        stream: SampleStream,
    ) -> None:
        self.count = stream.count
        self._packs = packs
        self._row_starts: list[int] = row_starts(packs).tolist()
        self._sample_starts: list[int] = sample_starts.tolist()
        self._lengths = lengths
        self._row_tokens = row_tokens
        self._stream = stream

    def spans(self, items: Ints) -> Iterator[list[TokenSpan]]:
        """What the row of each item is made of, in order of place."""
        for row in self._stream.locate(items).sample_ids.tolist():
            yield self._row(row)

    def _row(self, row: int) -> list[TokenSpan]:
        shard = bisect_right(self._row_starts, row) - 1
        pack, number, origin = self._packs[shard], row - self._row_starts[shard], self._sample_starts[shard]
        a, b = pack.starts.item(number), pack.starts.item(number + 1)
        spans, at = [], 0
        for document, first in zip(pack.documents[a:b].tolist(), pack.first[a:b].tolist(), strict=True):
            # A document has one input fewer than tokens.
            last = min(first + self._row_tokens, self._lengths[origin + document] - 1)
            spans.append(TokenSpan(origin + document, first, last, at, has_next=True))
            at += last - first
        return spans


def row_starts(packs: Sequence[PackedRows]) -> Ints:
    """The first row of each shard, and the number of rows."""
    return np.cumsum([0, *(len(pack.starts) - 1 for pack in packs)])


def row_blocks(packs: Sequence[PackedRows], input_bytes: float) -> ShuffleBlocks:
    """Segments as the units in which rows are shuffled; an input stands for `input_bytes` of a shard."""
    starts = row_starts(packs)
    first = np.concatenate([start + pack.segments[:-1] for start, pack in zip(starts, packs, strict=False)])
    inputs = np.concatenate([pack.segment_inputs for pack in packs])
    return ShuffleBlocks(
        first,
        np.diff(first, append=starts[-1]).astype(np.int32),
        (inputs * input_bytes).astype(np.int64),
        np.repeat(np.arange(len(packs), dtype=np.int32), [len(pack.segment_inputs) for pack in packs]),
    )


def load_packs(catalog: Catalog, documents: Documents, row_tokens: int, say: Say) -> list[PackedRows]:
    """The rows of each shard, kept beside it."""
    return [_load_pack(catalog, documents, number, row_tokens, say) for number in range(len(catalog.shards))]


def _load_pack(catalog: Catalog, documents: Documents, number: int, row_tokens: int, say: Say) -> PackedRows:
    shard, name = catalog.shards[number], f"pack-{row_tokens}-{documents.name}"
    stamp = f"{documents.stamp(number)} {best_fit_packing.VERSION}"

    def build() -> dict[str, Array]:
        return asdict(best_fit_packing.pack_best_fit(documents.shard_lengths(number), row_tokens))

    return PackedRows(**sidecar.load_or_build(shard, name, stamp, build, say))
