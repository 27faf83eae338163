"""The loader reads ahead in order, raises at the step that fails, and stops when told."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from configs.recipe import Batch, Recipe
from data.batch import Rows
from data.dataset import Dataset, open_dataset
from data.loader import Loader
from data.order.mixture import Mixture, Portion
from tests.support.data.memory_source import MemorySource

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
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader))


class _Counted(Dataset):
    """Counts its reads."""

    def __init__(self) -> None:
        super().__init__([MemorySource("train", [100, 50], 1, 1)], Mixture([Portion(1.0)]), 1, 8)
        self.reads = 0

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        self.reads += 1
        return super().read(start, stop, pad_to)


_BATCH = Batch.model_validate({"global": 8, "micro": 2})


def test_reading_is_hidden_behind_the_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only a read moves, a second each, and only when it is let through."""
    counted, now_s, asked, let_through = _Counted(), [0.0], threading.Event(), threading.Semaphore(0)
    real_read = counted.read

    def read(*place: int) -> Rows:
        let_through.acquire()
        now_s[0] += 1.0
        return real_read(*place)

    def clock() -> float:
        asked.set()
        return now_s[0]

    monkeypatch.setattr(counted, "read", read)
    monkeypatch.setattr("data.loader.time.perf_counter", clock)
    with Loader(counted, _BATCH, rank=0, ranks=1, first_step=1, last_step=6) as loader:
        threading.Thread(target=lambda: (asked.wait(), let_through.release(4))).start()
        batches = iter(loader)
        assert next(batches).wait_s == 4.0  # nothing was there when it was asked for
        let_through.release(2 * 4)  # while the first step is trained
        _wait_until(lambda: counted.reads == 3 * 4)
        _wait_until(lambda: len(loader._ready) == 2)
        assert [(batch.step, batch.wait_s) for batch in (next(batches), next(batches))] == [(2, 0.0), (3, 0.0)]
        let_through.release(99)


def _wait_until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_is_read_ahead_than_asked_for() -> None:
    counted = _Counted()
    with Loader(counted, _BATCH, rank=0, ranks=1, first_step=1, last_step=50):
        _wait_until(lambda: counted.reads >= 4 * (2 + 1))  # two steps ready, one in hand
        time.sleep(0.2)  # many more might be read
        assert counted.reads == 4 * (2 + 1)


def test_a_step_tells_what_was_skipped_of_it() -> None:
    source = MemorySource("train", [100], 1, 1, damaged=frozenset({7, 60}))
    dataset = Dataset([source], Mixture([Portion(1.0)]), 1, 8)
    with Loader(dataset, _BATCH, rank=0, ranks=1, first_step=1, last_step=12) as loader:
        steps = list(loader)
    for step in steps:
        keys = [key for micro_batch in step.micro_batches for key in micro_batch.keys]
        assert [sample.key for sample in step.skipped] == [key for key in keys if key in {"7", "60"}]
        assert sum(micro_batch.targets for micro_batch in step.micro_batches) == 8 - len(step.skipped)
    assert sum(len(step.skipped) for step in steps) == 2
