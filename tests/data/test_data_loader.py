"""The loader reads ahead in order, raises at the step that fails, and stops when told."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from configs.recipe import Recipe
from data.batch import Rows
from data.catalog import Catalog
from data.dataset import Dataset, open_dataset
from data.loader import Loader

MakeRecipe = Callable[..., Recipe]


def _loader(dataset: Dataset, recipe: Recipe, rank: int = 0, ranks: int = 1, first: int = 1, last: int = 6) -> Loader:
    return Loader(dataset, recipe.batch, rank=rank, ranks=ranks, first_step=first, last_step=last)


def test_steps_come_in_order_and_workers_share_each(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    recipe = text_recipe(text_shards)
    dataset = open_dataset(recipe, "train")
    with _loader(dataset, recipe) as alone:
        expected = [[m.keys for m in batch.micro_batches] for batch in alone]
    assert len(expected) == 6
    ranks = 3
    dealt = []
    for rank in range(ranks):
        with _loader(dataset, recipe, rank, ranks) as loader:
            batches = list(loader)
            assert [batch.step for batch in batches] == [1, 2, 3, 4, 5, 6]
            dealt.append(batches)
    for step, keys in enumerate(expected):
        found = {m.index: m.keys for batches in dealt for m in batches[step].micro_batches if m.samples}
        assert [found[index] for index in sorted(found)] == keys
        assert {len(batches[step].micro_batches) for batches in dealt} == {recipe.batch.accumulation(ranks)}


def test_a_resumed_loader_continues_where_the_first_would_have(
    text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    recipe = text_recipe(text_shards)
    with (
        _loader(open_dataset(recipe, "train"), recipe) as whole,
        _loader(open_dataset(recipe, "train"), recipe, first=4) as resumed,
    ):
        for a, b in zip(list(whole)[3:], resumed, strict=True):
            for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
                assert (x.step, x.index, x.keys) == (y.step, y.index, y.keys)
                np.testing.assert_array_equal(x.arrays["tokens_BT"], y.arrays["tokens_BT"])


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_data_error_is_raised_at_its_step(
    cpus: int,
    tmp_path: Path,
    make_shard: Callable[..., Path],
    image_recipe: MakeRecipe,
    png: Callable[[int], bytes],
) -> None:
    samples = {f"k{i:02d}": {"png": png(i), "cls": b"1"} for i in range(48)}
    samples["k17"]["cls"] = b"99"
    recipe = image_recipe([make_shard(tmp_path / "a.tar", samples)], cpus)
    dataset = open_dataset(recipe, "train")
    bad_step = dataset.keys(0, 48).index("k17") // 12 + 1
    steps = []
    with pytest.raises(DataError, match=r"sample k17: part cls is 99"), _loader(dataset, recipe, last=9) as loader:
        for batch in loader:
            steps.append(batch.step)
    assert steps == list(range(1, bad_step))
    dataset.close()


def test_closing_stops_the_thread_while_it_waits_for_room(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    recipe = text_recipe(text_shards)
    before = threading.active_count()
    with _loader(open_dataset(recipe, "train"), recipe, last=10**9) as loader:
        assert next(iter(loader)).step == 1
        assert threading.active_count() == before + 1
        start = time.monotonic()
    assert time.monotonic() - start < 1
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader))


class _Slow:
    """A dataset on a disk that needs 20 ms per read."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.fingerprint: str = dataset.fingerprint
        self.count: int = dataset.count
        self.catalog: Catalog = dataset.catalog
        self.reads = 0

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        time.sleep(0.02)
        self.reads += 1
        return self._dataset.read(start, stop, pad_to)

    def keys(self, start: int, stop: int) -> list[str]:
        return self._dataset.keys(start, stop)

    def close(self) -> None:
        self._dataset.close()


def test_reading_is_hidden_behind_the_training_step(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    recipe = text_recipe(text_shards)
    slow = _Slow(open_dataset(recipe, "train"))
    with _loader(slow, recipe) as loader:
        waits = []
        for batch in loader:
            waits.append(batch.wait_s)
            time.sleep(0.15)  # longer than the four reads of a step
    assert waits[0] > 0.07
    assert sum(waits[2:]) < 0.05


def test_no_more_is_read_ahead_than_asked_for(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    recipe = text_recipe(text_shards)
    slow = _Slow(open_dataset(recipe, "train"))
    with _loader(slow, recipe, last=50):
        time.sleep(0.5)
        assert slow.reads == 4 * (2 + 1)  # two steps ready, one in hand
