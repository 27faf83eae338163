"""What a recipe's split is read through: rows by position."""

from typing import Literal, Protocol

import numpy as np

from configs.errors import RecipeError
from configs.recipe import GptModel, Recipe, ResnetModel
from data.batch import MicroBatch, Rows, Slice
from data.catalog import Catalog, open_catalog
from data.documents import open_documents
from data.image_dataset import ImageDataset
from data.text_dataset import TextDataset
from data.types import Say, silent

ENTROPY_ROWS = 64


class Dataset(Protocol):
    """Rows or images by position. A train split is endless and shuffled; a val split has `count` positions, in order.

    `fingerprint` is the same wherever the shards lie and changes with their names, sizes, keys and layout, and with
    the tokenizer. `count` is the rows or images of one epoch (train, packed: whole rows). `catalog` has the shards.
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def catalog(self) -> Catalog: ...

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        """Positions start … stop-1 and blanks up to `pad_to` rows. DataError names a bad sample."""

    def keys(self, start: int, stop: int) -> list[str]:
        """What makes up each position: a sample key, or for packed rows `key[first:last]|…` token ranges."""

    def close(self) -> None:
        """Let go of threads and files."""


def open_dataset(recipe: Recipe, split: Literal["train", "val"], say: Say = silent) -> Dataset:
    """Index the split's shards and check that every sample has the parts needed. DataError, RecipeError."""
    data, model = recipe.data, recipe.model
    shards = data.train if split == "train" else data.val
    if shards is None:
        raise RecipeError("data.val is not given: add data.val.shards")
    catalog = open_catalog(shards.shards, say)
    seed = recipe.run.seed if split == "train" else None
    if data.kind == "image" and isinstance(model, ResnetModel):
        return ImageDataset(catalog, data, model.classes, seed, threads=recipe.workers.cpus)
    if data.kind != "image" and isinstance(model, GptModel):
        documents = open_documents(catalog, data, say)
        return TextDataset(catalog, documents, model.context, data.shuffle_window_bytes, seed)
    raise RecipeError(f"data.kind is {data.kind}, which model.kind {model.kind} does not train on")


def read_micro_batch(dataset: Dataset, step: int, piece: Slice, micro: int) -> MicroBatch:
    """One micro-batch of `micro` rows, blanks included."""
    rows = dataset.read(piece.start, piece.stop, micro)
    keys = dataset.keys(piece.start, piece.stop)
    return MicroBatch(step, piece.micro, rows.arrays, piece.stop - piece.start, rows.targets, keys)


def unigram_entropy(dataset: Dataset, max_tokens: int = 4_000_000) -> float:
    """Entropy in nats of single target tokens, over about `max_tokens`: the loss of a model that ignores context."""
    counts = np.zeros(0, np.int64)
    start = 0
    while start < max(dataset.count, 1) and counts.sum() < max_tokens:
        stop = min(start + ENTROPY_ROWS, max(dataset.count, 1))
        targets = dataset.read(start, stop, stop - start).arrays["targets_BT"]
        found = np.bincount(targets[targets >= 0])
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
        start = stop
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
