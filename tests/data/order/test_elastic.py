"""Any history of a run, however often it was cut and on however many workers, trains on the same global batches."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from configs.recipe import Batch
from data.batch import MicroBatch
from data.dataset import Dataset
from data.loader import Loader
from data.order.mixture import Mixture, Portion
from tests.support.data.memory_source import SAMPLE_BYTES, MemorySource
from tests.support.data.naive_stream import NaiveSource, Use, naive_batches

HISTORIES = 1000
PARTS = 10
SEED = 1337


@dataclass(frozen=True)
class Setting:
    """What a run is about; every history of it must agree."""

    sources: Sequence[NaiveSource]
    damaged: dict[str, frozenset[int]]
    lanes: int
    window_bytes: int
    batch: int
    steps: int

    def open(self) -> Dataset:
        opened = [
            MemorySource(s.name, s.shards, SEED, self.lanes, self.window_bytes, self.damaged[s.name])
            for s in self.sources
        ]
        mixture = Mixture([Portion(float(s.weight), s.samples if s.stops else None) for s in self.sources])
        return Dataset(opened, mixture, self.lanes, self.batch)


def _setting(draw: random.Random) -> Setting:
    """Two epochs of the largest source and some more, or all there is when every source stops."""
    lanes = draw.choice([1, 1, 2, 3, 5, 8])
    batch = lanes * draw.randint(-(-6 // lanes), 1 + 20 // lanes)
    names = ["a", "b", "c"][: draw.choice([1, 1, 2, 3])]
    sources = []
    for name in names:
        shards = [draw.randint(1, 90) for _ in range(draw.randint(1, 3))]
        fingerprint = MemorySource(name, shards, SEED, 1).fingerprint
        weight, stops = draw.choice(["0.7", "0.2", "1", "3"]), draw.random() < 0.4
        sources.append(NaiveSource(name, fingerprint, shards, SAMPLE_BYTES, weight, stops))
    damaged = {
        s.name: frozenset(draw.sample(range(s.samples), min(draw.choice([0, 0, 3]), s.samples))) for s in sources
    }
    samples = sum(s.samples for s in sources)
    steps = samples // batch if all(s.stops for s in sources) else 2 * samples // batch + draw.randint(1, 5)
    return Setting(sources, damaged, lanes, lanes * draw.randint(1, 9000), batch, steps)


def _train(setting: Setting, draw: random.Random) -> list[list[MicroBatch]]:
    """The micro-batches of every step, in order, of a run that is cut and resumed on other workers until it is done."""
    done: list[list[MicroBatch]] = []
    while len(done) < setting.steps:
        ranks, stop = draw.randint(1, 16), draw.randint(len(done) + 1, setting.steps)
        micro = draw.choice([n for n in range(1, setting.batch + 1) if setting.batch % n == 0])
        done += _attempt(setting, len(done) + 1, stop, ranks, micro, prefetch=draw.randint(1, 4))
    return done


def _attempt(setting: Setting, first: int, stop: int, ranks: int, micro: int, prefetch: int) -> list[list[MicroBatch]]:
    """Steps first … stop, while the loaders read ahead towards the end of the run: the cut loses what they hold."""
    batch = Batch.model_validate({"global": setting.batch, "micro": micro})
    dataset = setting.open()
    loaders = [
        Loader(
            dataset,
            batch,
            rank=rank,
            ranks=ranks,
            first_step=first,
            last_step=setting.steps,
            prefetch_steps=prefetch,
        )
        for rank in range(ranks)
    ]
    steps = []
    try:
        for step, batches in zip(range(first, stop + 1), zip(*loaders, strict=True), strict=False):
            assert {b.step for b in batches} == {step}
            assert {len(b.micro_batches) for b in batches} == {batch.accumulation(ranks)}
            found = [m for b in batches for m in b.micro_batches if m.samples]
            assert [m.index for m in found] == list(range(batch.micro_batches))
            steps.append(found)
    finally:
        for loader in loaders:
            loader.close()
        dataset.close()
    return steps


def _check_batch(setting: Setting, found: Sequence[MicroBatch], expected: Sequence[Use]) -> None:
    several = len(setting.sources) > 1
    assert [key for m in found for key in m.keys] == [f"{u.source}/" * several + str(u.sample) for u in expected]
    lost = [use for use in expected if use.sample in setting.damaged[use.source]]
    assert sorted((s.shard, s.key) for m in found for s in m.skipped) == sorted((u.source, str(u.sample)) for u in lost)
    assert sum(m.targets for m in found) == len(expected) - len(lost)
    labels = [label for m in found for label in m.arrays["labels_B"][: m.samples].tolist()]
    epochs = [epoch for m in found for epoch in m.arrays["epochs_B"][: m.samples].tolist()]
    whole = [(-100, -1) if use in lost else (use.sample, use.epoch) for use in expected]
    assert list(zip(labels, epochs, strict=True)) == whole


def _check_epochs(setting: Setting, batches: Sequence[Sequence[Use]]) -> None:
    for source in setting.sources:
        used: dict[int, list[int]] = {}
        for use in (use for batch in batches for use in batch if use.source == source.name):
            used.setdefault(use.epoch, []).append(use.sample)
        for epoch, samples in used.items():
            assert len(samples) == len(set(samples))
            assert epoch == max(used) or sorted(samples) == list(range(source.samples))
        assert not source.stops or set(used) <= {0}


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in range(2, PARTS))])
def test_every_history_trains_on_the_same_global_batches_each_sample_once_per_epoch(part: int) -> None:
    for number in range(part, HISTORIES, PARTS):
        draw = random.Random(number)
        setting = _setting(draw)
        expected = naive_batches(
            setting.sources, SEED, setting.lanes, setting.window_bytes, setting.batch, setting.steps
        )
        _check_epochs(setting, expected)
        for found, uses in zip(_train(setting, draw), expected, strict=True):
            _check_batch(setting, found, uses)
