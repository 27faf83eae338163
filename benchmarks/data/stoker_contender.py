"""Stoker's side of `benchmarks.data`: `python -m benchmarks.data.stoker_contender FOLDER`."""

import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.child import digest, measured, measured_once, serve
from benchmarks.data.sample_shards import CLASSES, CROP_PADDING, PARTS, PIXELS, TEXT_BYTES, shards
from configs.recipe import Recipe
from configs.sections.data_section import RemoteReads
from data.dataset import open_dataset
from data.images.image_source import open_image_source
from data.index.open_catalog import open_catalog
from data.index.shard_index import build_index
from data.index.tar_members import TarParser
from data.loader import Loader
from data.shards.local_shard import LocalShard

BATCH = 64
ROW_TOKENS = TEXT_BYTES  # a row of bytes is as long as a text is on average


def image_recipe(pattern: list[str]) -> Recipe:
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


def text_recipe(pattern: list[str], verify: bool, cache_dir: str | None = None) -> Recipe:
    """Bytes as tokens in rows of ROW_TOKENS, packed end to end, batches of 64; all else by default."""
    return Recipe.model_validate(
        {
            "run": {"name": "bench", "steps": 1},
            "model": {"kind": "gpt", "context": ROW_TOKENS},
            "data": {
                "kind": "text",
                "train": {"shards": pattern},
                "verify_reads": verify,
                "remote": {"cache_dir": cache_dir},
            },
            "batch": {"global": BATCH, "micro": BATCH},
            "optimizer": {"kind": "adamw"},
        }
    )


class TrainingRows:
    """Batches of rows of tokens as `stoker train` reads them, by its data set and its loader, epoch after epoch."""

    def __init__(self, recipe: Recipe) -> None:
        self._batch = recipe.batch
        self._dataset = open_dataset(recipe, "train")
        self._next_step = 1

    def epoch(self) -> Iterator[int]:
        """The rows of each batch, of as many whole batches as an epoch has; the next call goes on behind them."""
        last = self._next_step + self._dataset.count // BATCH - 1
        with Loader(self._dataset, self._batch, rank=0, ranks=1, first_step=self._next_step, last_step=last) as loader:
            for read in loader:
                self._next_step = read.step + 1
                yield sum(micro_batch.samples for micro_batch in read.micro_batches)

    def close(self) -> None:
        """Let go of files and connections."""
        self._dataset.close()


class Stoker:
    """Handlers; what is opened stays open from one question to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[bool, TrainingRows] = {}
        self._fill: Callable[[], Iterator[int]] | None = None

    def read(self, seconds: float, verify: bool) -> dict[str, Any]:
        """Rows of text; the count is of rows. With `verify` each block is compared once, when it is first read."""
        if verify not in self._rows:
            self._rows[verify] = TrainingRows(text_recipe(shards(self._folder, "text"), verify))
        return measured(self._rows[verify].epoch, seconds)

    def first_pass(self) -> dict[str, Any]:
        """One epoch after opening, in which every block is compared; the count is of rows."""
        rows = TrainingRows(text_recipe(shards(self._folder, "text"), verify=True))
        try:
            return measured_once(lambda: sum(rows.epoch()))
        finally:
            rows.close()

    def check(self, kind: str) -> dict[str, int]:
        """The first part of every sample, untimed: whether it is what the others have."""
        catalog = open_catalog(shards(self._folder, kind))
        part = catalog.required_part(PARTS[kind][0])
        samples = (catalog.read(part, sample) for sample in range(catalog.count))
        return digest((len(sample), zlib.crc32(sample)) for sample in samples)

    def decode(self, seconds: float) -> dict[str, Any]:
        """Into the same uint8 batch again and again."""
        self._fill = self._fill or self._filler()
        return measured(self._fill, seconds)

    def index(self, kind: str, how: str) -> dict[str, Any]:
        """Every header of all shards; the count is of members (parse) or of bytes (build)."""
        opened = [LocalShard(path) for path in shards(self._folder, kind)]
        if how == "build":
            return measured_once(lambda: sum(build_index(shard).checksums.stat.size for shard in opened))
        return measured_once(lambda: sum(map(_parsed, opened)))

    def remote(self, urls: list[str], how: str) -> dict[str, Any]:
        """Text at these URLs once; the count is of bytes (a token is one). Cached before are only indexes.

        `how`: stream (every byte, as a new shard is indexed) or shuffled (every row, as training reads it).
        """
        with tempfile.TemporaryDirectory() as other:  # whoever builds an index leaves the shard in the cache
            open_catalog(urls, RemoteReads(cache_dir=other)).close()
        with tempfile.TemporaryDirectory() as cache:
            if how == "stream":
                opened = open_catalog(urls, RemoteReads(cache_dir=cache))
                return measured_once(lambda: sum(len(chunk) for shard in opened.shards for chunk in shard.stream()))
            rows = TrainingRows(text_recipe(urls, verify=True, cache_dir=cache))
            try:
                return measured_once(lambda: ROW_TOKENS * sum(rows.epoch()))
            finally:
                rows.close()

    def resume(self, pattern: list[str], fraction: float) -> dict[str, float]:
        """Milliseconds from nothing open to the keys, then to the pixels, of the batch at `fraction` of an epoch."""
        made = image_recipe(pattern)
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

    def _filler(self) -> Callable[[], Iterator[int]]:
        paths = shards(self._folder, "jpeg")
        source = open_image_source("train", open_catalog(paths), image_recipe(paths), 1)
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
