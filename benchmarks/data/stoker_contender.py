"""Stoker's side of `benchmarks.data`: `python -m benchmarks.data.stoker_contender FOLDER`."""

import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.child import digest, measured, once, serve
from benchmarks.data.raw_batches import RawBatches, gather
from benchmarks.data.sample_shards import CLASSES, CROP_PADDING, PARTS, PIXELS, shards
from configs.recipe import Recipe
from configs.sections.data_section import RemoteReads
from data.dataset import open_dataset
from data.images.image_source import open_image_source
from data.index.catalog import Catalog
from data.index.open_catalog import open_catalog
from data.index.shard_index import build_index
from data.index.tar import TarParser
from data.order.epochs import SampleStream
from data.shards.local_shard import LocalShard

BATCH = 64
BUFFER_BYTES = 8 << 20  # more than a batch has
LANES = 64  # the recipe's default for this batch


def recipe(pattern: list[str]) -> Recipe:
    """Images at their own size, crop and flip, batches of 64; all else by default."""
    return Recipe.model_validate(
        {
            "run": {"name": "bench", "steps": 1},
            "model": {"kind": "resnet", "classes": CLASSES},
            "data": {
                "kind": "image",
                "size": PIXELS,
                "train": {"shards": pattern},
                "augment": {"crop_padding": CROP_PADDING, "flip": True},
            },
            "batch": {"global": BATCH, "micro": BATCH},
            "optimizer": {"kind": "sgd"},
        }
    )


class Reader:
    """Batches of undecoded samples, epoch after epoch."""

    def __init__(self, catalog: Catalog, kind: str) -> None:
        self.count = catalog.count
        window_bytes = recipe(["-"]).data.shuffle_window_bytes
        stream = SampleStream(catalog.blocks(), window_bytes, catalog.fingerprint, 1, LANES)
        self._raw = RawBatches(catalog, stream, PARTS[kind], BATCH)
        self._epoch = 0
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def batches(self) -> Iterator[list[list[memoryview]]]:
        """One epoch; the next call gives the next one."""
        first = self._epoch * self.count
        self._epoch += 1
        return self._raw.read(first, first + self.count)

    def epoch(self) -> Iterator[int]:
        """The samples of each batch, as views that nobody has read."""
        return (len(batch[0]) for batch in self.batches())

    def epoch_gathered(self) -> Iterator[int]:
        """As `epoch`, the first part's views copied into one buffer, which reads them."""
        return (len(gather(batch[0], self._buffer)) - 1 for batch in self.batches())


class Stoker:
    """Handlers; what is opened stays open from one question to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[tuple[str, bool], Reader] = {}
        self._fill: Callable[[], Iterator[int]] | None = None

    def read(self, kind: str, seconds: float, copied: bool, verify: bool) -> dict[str, Any]:
        reader = self._reader(kind, verify)
        return measured(reader.epoch_gathered if copied else reader.epoch, seconds)

    def first_pass(self, kind: str) -> dict[str, Any]:
        """One epoch after opening, in which every block is checked."""
        reader = Reader(open_catalog(shards(self._folder, kind)), kind)
        return once(lambda: sum(reader.epoch()))

    def check(self, kind: str) -> dict[str, int]:
        """What one epoch of batches holds, of the first part."""
        parts = (batch[0] for batch in self._reader(kind, verify=True).batches())
        return digest((len(sample), zlib.crc32(sample)) for samples in parts for sample in samples)

    def decode(self, seconds: float) -> dict[str, Any]:
        """Into the same uint8 batch again and again."""
        self._fill = self._fill or self._filler()
        return measured(self._fill, seconds)

    def index(self, kind: str, how: str) -> dict[str, Any]:
        """Every header of all shards; the count is of members (parse) or of bytes (build)."""
        opened = [LocalShard(path) for path in shards(self._folder, kind)]
        if how == "build":
            return once(lambda: sum(build_index(shard).checksums.stat.size for shard in opened))
        return once(lambda: sum(map(_parsed, opened)))

    def remote(self, urls: list[str], how: str) -> dict[str, Any]:
        """Every byte (stream) or every sample (shuffled) of these URLs once; cached before are only their indexes."""
        with tempfile.TemporaryDirectory() as cache:
            catalog = open_catalog(urls, RemoteReads(cache_dir=cache))
            if how == "stream":
                return once(lambda: sum(len(piece) for shard in catalog.shards for piece in shard.stream()))
            reader = Reader(catalog, "jpeg")
            return once(lambda: sum(len(view) for batch in reader.batches() for views in batch for view in views))

    def resume(self, pattern: list[str], fraction: float) -> dict[str, float]:
        """Milliseconds from nothing open to the keys, then to the pixels, of the batch at `fraction` of an epoch."""
        made = recipe(pattern)
        start = time.perf_counter()
        dataset = open_dataset(made, "train")
        opened = time.perf_counter()
        first = int(dataset.count * fraction) // BATCH * BATCH
        keys = dataset.keys(first, first + BATCH)
        located = time.perf_counter()
        rows = dataset.read(first, first + BATCH, BATCH)
        read = time.perf_counter()
        assert len(keys) == len(rows.arrays["labels_B"]) == rows.targets == BATCH
        dataset.close()
        ms = {"open": opened - start, "keys": located - opened, "batch": read - located, "all": read - start}
        return {name: 1e3 * seconds for name, seconds in ms.items()} | {"samples": dataset.count}

    def _reader(self, kind: str, verify: bool) -> Reader:
        if (kind, verify) not in self._readers:
            catalog = open_catalog(shards(self._folder, kind), verify_reads=verify)
            self._readers[kind, verify] = Reader(catalog, kind)
        return self._readers[kind, verify]

    def _filler(self) -> Callable[[], Iterator[int]]:
        paths = shards(self._folder, "jpeg")
        source = open_image_source("train", open_catalog(paths), recipe(paths), 1)
        arrays, rows = source.blank(BATCH), np.arange(BATCH)

        def fill() -> Iterator[int]:
            for start in range(0, source.count, BATCH):
                skipped = source.fill(np.arange(start, start + BATCH), rows, arrays)
                assert not skipped
                yield BATCH

        return fill


def _parsed(shard: LocalShard) -> int:
    return sum(len(members.names) for members in TarParser(shard.name, shard.stat().size).members(shard.stream()))


def main() -> None:
    """Serve."""
    stoker = Stoker(Path(sys.argv[1]))
    serve(
        {name: getattr(stoker, name) for name in ("read", "first_pass", "check", "decode", "index", "remote", "resume")}
    )


if __name__ == "__main__":
    main()
