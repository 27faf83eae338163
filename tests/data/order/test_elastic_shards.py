"""As test_elastic, on real shards: tokens packed both ways, images, and mixtures of them."""

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.recipe import Batch, Recipe
from data.arrays import Array
from data.dataset import Dataset, open_dataset
from data.loader import Loader

MakeRecipe = Callable[..., Recipe]
HISTORIES_PER_KIND = 25
Step = tuple[list[str], dict[str, Array]]


@pytest.fixture
def recipes(
    text_shards: list[Path], image_shard: Path, text_recipe: MakeRecipe, image_recipe: MakeRecipe
) -> dict[str, Recipe]:
    """Two epochs each, but for the last batch."""

    def mixed(shards: list[Path]) -> dict[str, Any]:
        entries = [
            {"name": f"s{i}", "shards": str(shard), "weight": 0.3 + i, "when_exhausted": "stop" if i == 0 else "repeat"}
            for i, shard in enumerate(shards)
        ]
        return {"train": {"shards": entries}}

    augment = {"crop_padding": 1, "flip": True}
    return {
        "concat": text_recipe(text_shards, context=48),
        "best fit": text_recipe(text_shards, context=48, packing="best_fit"),
        "masked": text_recipe(text_shards, context=48, document_mask=True, lanes=2),
        "mixed rows": text_recipe(text_shards, context=48, packing="best_fit", **mixed(text_shards)),
        "images": image_recipe([image_shard], augment=augment),
        "one lane": image_recipe([image_shard], augment=augment, lanes=1),
        "mixed images": image_recipe([image_shard], augment=augment, **mixed([image_shard] * 2)),
    }


_KINDS = ["concat", "best fit", "masked", "mixed rows", "images", "one lane", "mixed images"]


@pytest.mark.parametrize("kind", _KINDS)
def test_every_history_reads_the_same_global_batches(kind: str, recipes: dict[str, Recipe]) -> None:
    recipe = recipes[kind]
    dataset = open_dataset(recipe, "train")
    steps = 2 * dataset.count // recipe.batch.global_ + 1
    expected = [_whole(dataset, recipe.batch.global_, step) for step in range(1, steps + 1)]
    for number in range(HISTORIES_PER_KIND):
        draw, done = random.Random(number), list[Step]()
        while len(done) < steps:
            micro = draw.choice([n for n in range(1, recipe.batch.global_ + 1) if recipe.batch.global_ % n == 0])
            batch = Batch.model_validate({"global": recipe.batch.global_, "micro": micro})
            stop = draw.randint(len(done) + 1, steps)
            done += _attempt(dataset, batch, len(done) + 1, stop, draw.randint(1, 16), draw.randint(1, 4))
        for (keys, arrays), (expected_keys, expected_arrays) in zip(done, expected, strict=True):
            assert keys == expected_keys
            for name, array in expected_arrays.items():
                np.testing.assert_array_equal(arrays[name], array)
    dataset.close()


def _whole(dataset: Dataset, size: int, step: int) -> Step:
    """Global batch `step`, read at once."""
    start = (step - 1) * size
    return dataset.keys(start, start + size), dataset.read(start, start + size, size).arrays


def _attempt(dataset: Dataset, batch: Batch, first: int, stop: int, ranks: int, prefetch: int) -> list[Step]:
    """Steps first … stop of a run that is cut there, while its loaders have read further."""
    loaders = [
        Loader(dataset, batch, rank=r, ranks=ranks, first_step=first, last_step=stop + 3, prefetch_steps=prefetch)
        for r in range(ranks)
    ]
    steps = []
    for _, parts in zip(range(first, stop + 1), zip(*loaders, strict=True), strict=False):
        assert {len(part.micro_batches) for part in parts} == {batch.accumulation(ranks)}
        found = [m for part in parts for m in part.micro_batches if m.samples]
        arrays = {name: np.concatenate([m.arrays[name] for m in found]) for name in found[0].arrays}
        steps.append(([key for m in found for key in m.keys], arrays))
    for loader in loaders:
        loader.close()
    return steps


@pytest.mark.parametrize("kind", ["images", "one lane"])
def test_each_of_two_epochs_has_every_image_once(kind: str, recipes: dict[str, Recipe]) -> None:
    # An epoch ends inside a batch, whose items are sorted by lane: the whole epochs are told apart by their images.
    batch = 12
    dataset = open_dataset(recipes[kind], "train")
    keys = [key for start in range(0, 300, batch) for key in dataset.keys(start, start + batch)]
    assert Counter(keys) == {f"i{i:03d}": 3 for i in range(100)}
    assert max(Counter(keys[:96]).values()) == 1  # the batches of the first epoch alone


def test_each_epoch_of_rows_that_fit_has_every_token_but_the_last_of_a_document_once_as_input(
    recipes: dict[str, Recipe], text_shards: list[Path]
) -> None:
    dataset = open_dataset(recipes["best fit"], "train")
    keys = dataset.sources[0].keys(np.arange(dataset.count, 2 * dataset.count))
    used = Counter(
        (key, i)
        for row in keys
        for key, first, last in re.findall(r"([^|\[]+)\[(\d+):(\d+)\]", row)
        for i in range(int(first), int(last))
    )
    sizes = dataset.sources[0].catalog.required_part("txt").sizes
    assert set(used.values()) == {1} and used.total() == sizes.total  # end of document is only a target
