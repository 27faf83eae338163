"""What a recipe's splits are read through, whatever they hold: by position, out of one source or several."""

import math
import os
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import DataError, RecipeError
from configs.recipe import Recipe
from data.batch import step_slices
from data.dataset import Dataset, open_dataset, read_micro_batch, unigram_entropy
from data.order.mixture import Mixture, Portion
from tests.support.data.memory_source import MemorySource

MakeRecipe = Callable[..., Recipe]
MakeShard = Callable[..., Path]


def _mixed(shards: list[Path], **rules: str) -> dict[str, Any]:
    """A source per shard, named a, b, …, of weights 1, 2, …"""
    entries = [
        {"name": name, "shards": str(path), "weight": 1.0 + i, "when_exhausted": rules.get(name, "repeat")}
        for i, (name, path) in enumerate(zip("abc", shards, strict=False))
    ]
    return {"train": {"shards": entries}}


@pytest.mark.parametrize("kind", ["text", "best_fit", "mixed text", "image", "mixed images"])
def test_the_global_batch_does_not_depend_on_workers_or_micro_size(
    kind: str, text_shards: list[Path], image_shard: Path, text_recipe: MakeRecipe, image_recipe: MakeRecipe
) -> None:
    augment = {"crop_padding": 2, "flip": True}
    recipe = {
        "text": lambda: text_recipe(text_shards),
        "best_fit": lambda: text_recipe(text_shards, packing="best_fit"),
        "mixed text": lambda: text_recipe(text_shards, **_mixed(text_shards, b="stop")),
        "image": lambda: image_recipe([image_shard], augment=augment),
        "mixed images": lambda: image_recipe([image_shard], augment=augment, **_mixed([image_shard] * 2)),
    }[kind]()
    dataset = open_dataset(recipe, "train")

    def global_batch(micro: int, ranks: int) -> tuple[list[list[int]], list[str]]:
        batch = recipe.batch.model_copy(update={"micro": micro})
        pieces = [piece for rank in range(ranks) for piece in step_slices(9, batch, rank, ranks)]
        parts = [read_micro_batch(dataset, 9, piece, micro) for piece in pieces]
        assert all(len(array) == micro for part in parts for array in part.arrays.values())
        arrays = [np.concatenate([p.arrays[name][: p.samples] for p in parts]).tolist() for name in parts[0].arrays]
        return arrays, [key for part in parts for key in part.keys]

    expected = global_batch(recipe.batch.global_, 1)
    for micro, ranks in ((1, 3), (2, 1), (2, 4), (4, 16)):
        assert global_batch(micro, ranks) == expected
    dataset.close()


def test_each_epoch_has_every_image_once_with_its_own_label(image_shard: Path, image_recipe: MakeRecipe) -> None:
    recipe = image_recipe([image_shard])
    dataset = open_dataset(recipe, "train")
    read = [read_micro_batch(dataset, step, step_slices(step, recipe.batch, 0, 1)[0], 12) for step in range(1, 26)]
    assert all(batch.targets == batch.samples == 3 and not batch.skipped for batch in read)
    keys = [dataset.keys(start, start + 12) for start in range(0, 300, 12)]  # 25 batches, three epochs
    assert [key for step, batch in enumerate(read) for key in batch.keys] == [key for step in keys for key in step[:3]]
    assert Counter(key for step in keys for key in step) == {f"i{i:03d}": 3 for i in range(100)}
    arrays = dataset.read(0, 300, 300).arrays
    numbers = [int(key[1:]) for step in keys for key in step]
    assert arrays["images_BHWC"][:, 0, 0, 0].tolist() == numbers
    assert arrays["labels_B"].tolist() == [number % 10 for number in numbers]
    dataset.close()


def test_validation_has_each_sample_once_in_shard_order(image_shard: Path, image_recipe: MakeRecipe) -> None:
    dataset = open_dataset(image_recipe([image_shard], lanes=4), "val")
    assert dataset.keys(0, dataset.count) == [f"i{i:03d}" for i in range(100)]
    rows = dataset.read(98, 100, 5)
    assert rows.targets == 2 and rows.arrays["labels_B"].tolist() == [8, 9, -100, -100, -100]


def test_blanks_have_no_targets(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    text = open_dataset(text_recipe(text_shards), "train")
    rows = text.read(5, 7, 4)
    assert rows.targets == 32 and (rows.arrays["targets_BT"][2:] == -100).all()
    assert (rows.arrays["tokens_BT"][2:] == 256).all()
    assert text.read(5, 5, 4).targets == 0


def test_a_mixture_draws_from_each_source_in_proportion_and_names_it(
    text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    dataset = open_dataset(text_recipe(text_shards, **_mixed(text_shards)), "train")
    names = [key.split("/")[0] for key in dataset.keys(0, 600)]
    for positions in (8, 120, 600):
        assert dataset.source_counts(positions) == Counter(names[:positions])
    assert dataset.source_counts(600) == {"a": 100, "b": 200, "c": 300}
    assert dataset.count == sum(source.count for source in dataset.sources)
    samples = sum(source.catalog.count for source in dataset.sources)
    sizes = sum(shard.stat().st_size for shard in text_shards)
    assert (dataset.size.shards, dataset.size.samples, dataset.size.bytes) == (3, samples, sizes) == (3, 191, sizes)


def test_the_same_shards_in_two_sources_are_read_in_two_orders(image_shard: Path, image_recipe: MakeRecipe) -> None:
    shards = [{"name": name, "shards": str(image_shard), "weight": 1.0} for name in ("a", "b")]
    dataset = open_dataset(image_recipe([image_shard], train={"shards": shards}), "train")
    keys = dataset.keys(0, 192)
    orders = [[key[2:] for key in keys if key.startswith(f"{name}/")] for name in "ab"]
    assert all(len(order) == len(set(order)) == 96 for order in orders)
    assert sum(a == b for a, b in zip(*orders, strict=True)) < 20


def test_a_source_that_stops_is_used_once(image_shard: Path, image_recipe: MakeRecipe) -> None:
    recipe = image_recipe([image_shard] * 2, **_mixed([image_shard] * 2, a="stop"))
    keys = open_dataset(recipe, "train").keys(0, 600)
    assert sorted(key for key in keys if key[0] == "a") == [f"a/i{i:03d}" for i in range(100)]
    assert {key[0] for key in keys[:290]} == {"a", "b"} and {key[0] for key in keys[310:]} == {"b"}


def test_a_run_longer_than_sources_that_stop_is_refused_up_front(image_shard: Path, image_recipe: MakeRecipe) -> None:
    recipe = image_recipe([image_shard] * 2, **_mixed([image_shard] * 2, a="stop", b="stop"))
    with pytest.raises(RecipeError, match=r"run\.steps 100 × batch\.global 12 needs 1,200 .* hold 200: lower .* to 16"):
        open_dataset(recipe, "train")
    short = recipe.model_copy(update={"run": recipe.run.model_copy(update={"steps": 16})})
    assert len(set(open_dataset(short, "train").keys(0, 192))) == 192


def test_the_fingerprint_follows_the_data_not_the_folder(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    times = count(10**9)

    def fingerprint(folder: str, key: str, text: bytes, part: str = "txt") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        shard = make_shard(tmp_path / folder / "a.tar", {key: {"txt": b"12", **{part: text}}})
        os.utime(shard, ns=(0, next(times)))
        return open_dataset(text_recipe([shard]), "train").fingerprint

    assert fingerprint("a", "k", b"12") == fingerprint("b", "k", b"12")
    others = (("k", b"12"), ("j", b"12"), ("k", b"123"), ("k", b"13"), ("k", b"12", "md"))
    assert len({fingerprint("a", *other) for other in others}) == len(others)


def test_the_fingerprint_of_a_mixture_follows_names_and_data_of_its_sources() -> None:
    def fingerprint(*named: tuple[str, int]) -> str:
        sources = [MemorySource(name, [samples], 1, 1) for name, samples in named]
        return Dataset(sources, Mixture([Portion(1.0)] * len(sources)), 1, 4).fingerprint

    assert fingerprint(("a", 5)) == MemorySource("a", [5], 1, 1).fingerprint
    mixtures = ([("a", 5), ("b", 6)], [("a", 6), ("b", 5)], [("b", 5), ("a", 6)], [("a", 5), ("b", 7)])
    assert len({fingerprint(*mixture) for mixture in mixtures}) == len(mixtures)


def test_what_was_opened_is_closed_when_a_later_source_is_refused(
    image_shard: Path, tmp_path: Path, make_shard: MakeShard, image_recipe: MakeRecipe
) -> None:
    bare = make_shard(tmp_path / "bare.tar", {"x": {"txt": b"x"}})
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(DataError, match=r"bare\.tar: sample x has parts txt, but the recipe needs an image"):
        open_dataset(image_recipe([image_shard], cpus=3, **_mixed([image_shard, bare])), "train")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_missing_part_is_named_at_once(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe, image_recipe: MakeRecipe
) -> None:
    shard = make_shard(
        tmp_path / "a.tar", {"ok": {"txt": b"x", "png": b"", "cls": b"1"}, "bare": {"md": b"x", "json": b""}}
    )
    for recipe, expected in ((text_recipe([shard]), "txt"), (image_recipe([shard]), "an image")):
        with pytest.raises(DataError) as caught:
            open_dataset(recipe, "train")
        message = str(caught.value)
        assert f"{shard}: sample bare has parts json, md" in message and f"needs {expected}" in message
        assert "(1 of 2 samples lack it)" in message


def test_the_unigram_entropy_of_two_equal_letters_is_log_two(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"d": {"txt": b"57" * 32 * 16}})
    dataset = open_dataset(text_recipe([shard]), "train")
    assert math.isclose(unigram_entropy(dataset), math.log(2), abs_tol=0.01)


def test_a_recipe_without_validation_data_is_refused(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    recipe = text_recipe(text_shards, val=None)
    with pytest.raises(RecipeError, match=r"data\.val"):
        open_dataset(recipe, "val")
