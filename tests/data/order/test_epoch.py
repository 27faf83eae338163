"""Order, lanes and batches follow from position alone."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.checkout import CHECKOUT
from configs.recipe import Batch
from data.batch import eval_slices, step_slices
from data.index.shuffle_blocks import GROUP_SAMPLES, MAX_BLOCKS, ShuffleBlocks, split_into_blocks
from data.order import lanes as lane_places
from data.order.epoch import EpochOrder, assign_lanes
from data.order.epochs import SampleStream

shard_counts = st.lists(st.integers(1, 300), min_size=1, max_size=9)
lane_counts = st.integers(1, 12)
batches = st.builds(
    lambda micro, n: Batch.model_validate({"global": micro * n, "micro": micro}), *[st.integers(1, 12)] * 2
)


def _blocks(counts: list[int], sample_bytes: int | None = None) -> ShuffleBlocks:
    """Of samples of random sizes below 1000 bytes, or of these."""
    random = np.random.default_rng(sum(counts))
    groups = []
    for count in counts:
        sizes = random.integers(0, 1000, count) if sample_bytes is None else np.full(count, sample_bytes)
        groups.append(np.add.reduceat(sizes, np.arange(0, count, GROUP_SAMPLES)))
    return split_into_blocks(np.array(counts), groups)


def _order(counts: list[int], window_bytes: int, epoch: int = 0, lanes: int = 1, seed: int = 1) -> EpochOrder:
    key = ("f", seed)
    return EpochOrder(assign_lanes(_blocks(counts), lanes, key), window_bytes, key, epoch)


@given(shard_counts, st.integers(1, 200_000), st.integers(0, 3), lane_counts)
def test_every_epoch_is_a_permutation(counts: list[int], window_bytes: int, epoch: int, lanes: int) -> None:
    stream = SampleStream(_blocks(counts), window_bytes, "f", 1, lanes)
    located = stream.locate(np.arange(epoch * stream.count, (epoch + 1) * stream.count))
    assert sorted(located.sample_ids) == list(range(sum(counts))) and set(located.epochs) == {epoch}


@given(shard_counts, st.integers(1, 200_000), lane_counts, st.data())
def test_any_items_in_any_order_are_found_where_the_whole_has_them(
    counts: list[int], window_bytes: int, lanes: int, data: st.DataObject
) -> None:
    blocks = _blocks(counts)
    whole = SampleStream(blocks, window_bytes, "f", 1, lanes).locate(np.arange(3 * sum(counts)))
    items = np.array(data.draw(st.lists(st.integers(0, 3 * sum(counts) - 1))), np.int64)
    found = SampleStream(blocks, window_bytes, "f", 1, lanes).locate(items)
    assert found.sample_ids.tolist() == whole.sample_ids[items].tolist()
    assert found.epochs.tolist() == whole.epochs[items].tolist()


@given(st.integers(1, 500), lane_counts)
def test_each_lane_feeds_every_position_that_is_its_own_modulo_lanes(count: int, lanes: int) -> None:
    places = lane_places.places(np.arange(count), count, lanes)
    starts = lane_places.lane_starts(count, lanes)
    assert sorted(places) == list(range(count))
    for lane in range(lanes):
        assert places[lane::lanes].tolist() == list(range(starts[lane], starts[lane + 1]))
    assert np.ptp(np.diff(starts)) <= 1


def test_seed_epoch_and_data_each_change_the_order() -> None:
    streams = [SampleStream(_blocks([500]), 10**9, name, seed) for name, seed in (("f", 1), ("f", 2), ("g", 1))]
    orders = {tuple(stream.locate(np.arange(500) + first).sample_ids) for stream in streams for first in (0, 500)}
    assert len(orders) == 6


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    stream = SampleStream(_blocks([100, 50, 7], 10), 700, "fingerprint", 1337, 2)
    found = stream.locate(np.arange(2 * 157, 2 * 157 + 8)).sample_ids.tolist()
    assert found == [139, 88, 148, 84, 131, 70, 128, 72]


@given(shard_counts, lane_counts, st.integers(1, 50))
def test_lanes_keep_their_blocks_in_every_epoch_and_have_nearly_equal_weight(
    counts: list[int], lanes: int, heaviest: int
) -> None:
    blocks = _blocks(counts)
    weights = np.random.default_rng(0).integers(0, heaviest, len(blocks.first))
    laid = assign_lanes(blocks, lanes, ("f", 1), weights)
    shards = blocks.shard[laid.order]
    assert len([None for a, b in pairwise(shards) if a != b]) == len(counts) - 1  # each shard's blocks together
    bounds = pairwise(laid.starts)
    assert all(abs(weights[laid.order[a:b]].sum() - weights.sum() / lanes) <= 2 * heaviest for a, b in bounds)
    for epoch in range(2):
        order = EpochOrder(laid, 10_000, ("f", 1), epoch).block_order
        for a, b in pairwise(laid.starts):
            assert sorted(order[a:b]) == sorted(laid.order[a:b])


def test_what_is_in_use_at_once_does_not_depend_on_the_number_of_lanes() -> None:
    blocks = _blocks([64 * 40] * 40, 10)
    for lanes in (1, 4, 20):
        order = SampleStream(blocks, 64_000, "f", 1, lanes).order(0)
        assert len(order.window_samples) - 1 == 64 * 40 * 40 * 10 // 64_000 * lanes
        places = lane_places.places(np.arange(6400, 6400 + 640), blocks.count, lanes)
        assert len({int(sample) // 64 for sample in order.at(places)}) <= 2 * 100


@given(shard_counts, st.integers(1, 200_000), lane_counts)
def test_windows_tell_where_they_start_and_what_they_hold(counts: list[int], window_bytes: int, lanes: int) -> None:
    order = _order(counts, window_bytes, lanes=lanes)
    whole = order.samples(0, sum(counts)).tolist()
    for window, (a, b) in enumerate(pairwise(order.window_samples)):
        assert order.window(window).tolist() == whole[a:b]
    assert order.cumulative(order.blocks.samples).tolist() == order.window_samples.tolist()


def test_natural_order_is_that_of_the_shards() -> None:
    stream = SampleStream(_blocks([70, 90], 1), 50, "f", None)
    assert list(stream.locate(np.arange(160)).sample_ids) == list(range(160))


def test_positions_cross_epochs() -> None:
    stream = SampleStream(_blocks([7], 1), 50, "f", 3)
    located = stream.locate(np.arange(5, 30))
    assert list(located.epochs) == [0] * 2 + [1] * 7 + [2] * 7 + [3] * 7 + [4] * 2
    assert sorted(located.sample_ids[2:9]) == list(range(7))
    assert list(located.sample_ids[2:9]) != list(located.sample_ids[9:16])


@given(shard_counts)
def test_blocks_are_runs_of_one_shard_and_keep_every_byte(counts: list[int]) -> None:
    blocks = _blocks(counts, 3)
    ends = blocks.first + blocks.samples
    assert blocks.first.tolist() == [0, *ends[:-1]] and blocks.count == sum(counts)
    starts = np.cumsum([0, *counts])
    assert all(starts[s] <= a < b <= starts[s + 1] for s, a, b in zip(blocks.shard, blocks.first, ends, strict=True))
    assert blocks.bytes.tolist() == (3 * blocks.samples).tolist() and blocks.samples.max() <= GROUP_SAMPLES


def test_blocks_grow_when_there_would_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.index.shuffle_blocks.MAX_BLOCKS", 20)
    blocks = _blocks([1000, 3, 70, 2000, 129], 5)
    assert blocks.samples.max() == 256 and len(blocks.first) <= 20
    assert blocks.bytes.tolist() == (5 * blocks.samples).tolist()
    assert len(_blocks([7] * 30).first) == 30  # one per shard is the least


_BILLION = """
import resource, sys
import numpy as np
from data.index.shuffle_blocks import split_into_blocks
from data.order.epochs import SampleStream
shards, samples = int(sys.argv[1]), 10**9 // int(sys.argv[1])
groups = np.full(-(-samples // 64), 64 * 19_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blocks = split_into_blocks(np.full(shards, samples), (groups for _ in range(shards)))
stream = SampleStream(blocks, 256 << 20, "f", 1, 64)
found = stream.locate(np.arange(9 * 10**8, 9 * 10**8 + 256)).sample_ids
print(len(blocks.first), len(set(found.tolist())), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("shards", [1000, 200_000])
def test_the_first_batch_of_a_billion_samples_takes_less_than_200_megabytes(shards: int) -> None:
    command = [sys.executable, "-c", _BILLION, str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    blocks, samples, grown_kib = map(int, done.stdout.split())
    assert blocks <= MAX_BLOCKS and samples == 256
    assert grown_kib < 200e6 / 1024


@given(batches, st.integers(1, 16), st.integers(1, 50))
def test_micro_batches_are_the_same_for_any_number_of_workers(batch: Batch, ranks: int, step: int) -> None:
    dealt = [step_slices(step, batch, rank, ranks) for rank in range(ranks)]
    assert {len(slices) for slices in dealt} == {batch.accumulation(ranks)}
    assert [s for slices in dealt for s in slices if s.start < s.stop] == step_slices(step, batch, 0, 1)
    assert max(Counter(s.micro for slices in dealt for s in slices).values()) == 1
    for slices in dealt:
        assert all(a.stop == b.start for a, b in pairwise(slices) if b.start < b.stop)  # neighbours on one worker


@given(batches, st.integers(1, 50))
def test_micro_batches_partition_the_global_batch(batch: Batch, step: int) -> None:
    slices = step_slices(step, batch, 0, 1)
    assert (slices[0].start, slices[-1].stop) == ((step - 1) * batch.global_, step * batch.global_)
    assert all(a.stop == b.start and a.stop - a.start == batch.micro for a, b in pairwise(slices))


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 16))
def test_one_evaluation_pass_covers_each_sample_once(count: int, micro: int, ranks: int) -> None:
    dealt = [eval_slices(count, micro, rank, ranks) for rank in range(ranks)]
    assert len({len(slices) for slices in dealt}) == 1
    covered = [p for slices in dealt for s in slices for p in range(s.start, s.stop)]
    assert sorted(covered) == list(range(count))


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_evaluation_of_nothing_has_no_slices(ranks: int) -> None:
    assert eval_slices(0, 4, 0, ranks) == []
