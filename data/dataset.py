"""What a recipe's split is read through: rows by position, out of one source or a mixture of several."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np

from configs.errors import RecipeError
from configs.recipe import Recipe
from configs.sections.data_section import SourceSettings
from data import draws
from data.arrays import Array, Ints, Say, equal_runs, silent
from data.batch import MicroBatch, Rows, Slice
from data.images.image_source import open_image_source, with_images
from data.index.open_catalog import open_catalog
from data.order.global_batch import Arrangement
from data.order.mixture import Mixture, Portion
from data.source import IGNORED, Skipped, Source
from data.text.text_source import open_text_source

__all__ = ["Dataset", "open_dataset", "read_micro_batch", "unigram_entropy"]


ENTROPY_ROWS = 64
_TARGETS = ("targets_BT", "labels_B")


@dataclass(frozen=True)
class DatasetSize:
    """What a split holds."""

    shards: int
    samples: int
    bytes: int


class Dataset:
    """Rows or images by position. A train split is endless and shuffled; a val split has `count` positions, in order.

    `count` is the rows or images of one epoch, of all sources together. `fingerprint` is the same wherever the shards
    lie, and changes with their names and contents and with the tokenizer. Threads may share it.
    """

    def __init__(self, sources: Sequence[Source], mixture: Mixture, lanes: int, batch: int) -> None:
        self.sources = list(sources)
        self.count = sum(source.count for source in sources)
        self._mixture = mixture
        self._arrangement = Arrangement(mixture, [source.count for source in sources], lanes, batch)

    @property
    def fingerprint(self) -> str:
        """A single source's own; of several, a sha256 over names and fingerprints."""
        if len(self.sources) == 1:
            return self.sources[0].fingerprint
        lines = [f"{source.name}\0{source.fingerprint}\0" for source in self.sources]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def size(self) -> DatasetSize:
        """Shards, samples and bytes of all sources."""
        catalogs = [source.catalog for source in self.sources]
        indexes = [index for catalog in catalogs for index in catalog.indexes]
        return DatasetSize(
            len(indexes), sum(catalog.count for catalog in catalogs), sum(i.checksums.stat.size for i in indexes)
        )

    def source_counts(self, positions: int) -> dict[str, int]:
        """Rows or images taken from each source by positions 0 … positions-1 of the stream."""
        return dict(zip((source.name for source in self.sources), self._mixture.counts(positions), strict=True))

    def prefetch(self, start: int, stop: int) -> None:
        """A hint that these positions are read soon; of use to remote shards alone, and returns at once."""
        if any(source.catalog.has_remote for source in self.sources):
            for source, items, _ in self._by_source(start, stop):
                source.prefetch(items)

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        """Positions start … stop-1 and blanks up to `pad_to` rows. DataError names a bad sample (on_error stop).

        Where images are skipped, those that are left alone, without blanks.
        """
        arrays, skipped = self.sources[0].blank(pad_to), list[Skipped]()
        for source, items, rows in self._by_source(start, stop):
            skipped += source.fill(items, rows, arrays)
        samples = stop - start
        if skipped and "images_BHWC" in arrays:
            arrays = with_images(arrays)
            samples -= len(skipped)
        return Rows(arrays, samples, _count_targets(arrays), skipped)

    def keys(self, start: int, stop: int) -> list[str]:
        """What makes up each position, as Source.keys; of several sources, after `NAME/`."""
        found = [""] * (stop - start)
        for source, items, rows in self._by_source(start, stop):
            prefix = f"{source.name}/" if len(self.sources) > 1 else ""
            for row, key in zip(rows.tolist(), source.keys(items), strict=True):
                found[row] = prefix + key
        return found

    def _by_source(self, start: int, stop: int) -> Iterator[tuple[Source, Ints, Ints]]:
        """Each source that positions start … stop-1 draw from, the items and their rows."""
        placed = self._arrangement.at(start, stop)
        # Each source reads all its items of the batch in one call.
        by_source = np.argsort(placed.sources, kind="stable")
        for number, a, b in equal_runs(placed.sources[by_source]):
            rows = by_source[a:b]
            yield self.sources[number], placed.items[rows], rows

    def left_out(self) -> list[Skipped]:
        """Samples that no position holds, because they cannot be read (on_error skip)."""
        return [sample for source in self.sources for sample in source.left_out()]

    def close(self) -> None:
        """Let go of threads and files."""
        for source in self.sources:
            source.close()


def open_dataset(recipe: Recipe, split: Literal["train", "val"], say: Say = silent) -> Dataset:
    """Index the split's shards and check that every sample has the parts needed. DataError, RecipeError."""
    batch = recipe.batch.global_
    if split == "val":
        if recipe.data.val is None:
            raise RecipeError("data.val is not given: add data.val.shards")
        val = SourceSettings(name="val", shards=recipe.data.val.shards, weight=1.0)
        source = _open_source(val, recipe, None, say)
        return Dataset([source], Mixture([Portion(1.0, source.count)]), 1, batch)
    with ExitStack() as undo:
        sources = []
        for entry in recipe.data.train.sources:
            sources.append(_open_source(entry, recipe, _source_seed(recipe, entry), say))
            undo.callback(sources[-1].close)
        mixture = _mixture_of(recipe, sources)
        undo.pop_all()
    return Dataset(sources, mixture, recipe.data.lanes, batch)


def _source_seed(recipe: Recipe, entry: SourceSettings) -> int:
    """Sources of a mixture go by orders of their own, even where they name the same shards."""
    if len(recipe.data.train.sources) == 1:
        return recipe.run.seed
    # One bit fewer than were drawn: seeds are below 2**63.
    return int(draws.raw(1, ("source", entry.name, recipe.run.seed)).item() >> 1)


def _open_source(entry: SourceSettings, recipe: Recipe, seed: int | None, say: Say) -> Source:
    catalog = open_catalog(entry.shards, recipe.data.remote, say, recipe.data.verify_reads)
    if recipe.data.kind == "image":
        return open_image_source(entry.name, catalog, recipe, seed)
    return open_text_source(entry.name, catalog, recipe, seed, say)


def _mixture_of(recipe: Recipe, sources: Sequence[Source]) -> Mixture:
    """RecipeError: every source stops, and the run needs more than there is."""
    entries = recipe.data.train.sources
    limits = [
        source.count if entry.when_exhausted == "stop" else None for entry, source in zip(entries, sources, strict=True)
    ]
    mixture = Mixture([Portion(entry.weight, limit) for entry, limit in zip(entries, limits, strict=True)])
    batch, steps = recipe.batch.global_, recipe.run.steps
    if mixture.end is not None and steps * batch > mixture.end:
        fewer = f"lower run.steps to {mixture.end // batch}" if mixture.end >= batch else "lower batch.global"
        raise RecipeError(
            f"run.steps {steps} × batch.global {batch} needs {steps * batch:,} rows or images, but every source of "
            f"data.train.shards has when_exhausted: stop and they hold {mixture.end:,}: "
            f"{fewer}, or let a source repeat"
        )
    return mixture


def read_micro_batch(dataset: Dataset, step: int, positions: Slice, micro: int) -> MicroBatch:
    """One micro-batch of `micro` rows, blanks included."""
    rows = dataset.read(positions.start, positions.stop, micro)
    keys = dataset.keys(positions.start, positions.stop)
    return MicroBatch(step, positions.micro, rows.arrays, rows.samples, rows.targets, keys, rows.skipped)


def unigram_entropy(dataset: Dataset, max_rows: int | None = None, max_tokens: int = 4_000_000) -> float:
    """Entropy in nats of single target tokens, over about `max_tokens`: the loss of a model that ignores context."""
    counts = np.zeros(0, np.int64)
    count = min(dataset.count, max_rows or dataset.count)
    for start in range(0, count, ENTROPY_ROWS):
        stop = min(start + ENTROPY_ROWS, count)
        targets = dataset.read(start, stop, stop - start).arrays["targets_BT"]
        found = np.bincount(targets[targets >= 0])
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
        if counts.sum() >= max_tokens:
            break
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _count_targets(arrays: dict[str, Array]) -> int:
    return sum(int((arrays[name] != IGNORED).sum()) for name in _TARGETS if name in arrays)
