"""Which source each position draws from follows from position alone, evenly; batches are arranged by lane."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.arrays import Ints
from data.order.global_batch import Arrangement
from data.order.mixture import Mixture, Portion, integer_weights

weights = st.lists(st.sampled_from([0.7, 0.2, 0.1, 1.0, 3.5, 40.0, 1e-3, 0.333]), min_size=1, max_size=7)
limits = st.one_of(st.none(), st.integers(1, 60))
portions = st.lists(st.builds(Portion, st.sampled_from([0.7, 0.25, 1.0, 5.0]), limits), min_size=1, max_size=6)
LENGTH = 400


def _whole(mixture: Mixture) -> tuple[Ints, Ints]:
    return mixture.locate(np.arange(LENGTH if mixture.end is None else min(LENGTH, mixture.end)))


@given(weights)
def test_every_prefix_has_its_share_of_each_source(weights: list[float]) -> None:
    sources, _ = _whole(Mixture([Portion(weight) for weight in weights]))
    thousandths = [round(1000 * weight) for weight in weights]
    splits, total = ceil(log2(len(weights))), sum(thousandths)
    for source, weight in enumerate(thousandths):
        behind = np.cumsum(sources == source) * total - np.arange(1, len(sources) + 1) * weight
        assert 2 * abs(behind).max() <= splits * total  # half an item per split


@given(portions)
def test_each_source_is_used_in_order_without_gaps_up_to_its_limit(portions: list[Portion]) -> None:
    mixture = Mixture(portions)
    sources, items = _whole(mixture)
    for number, portion in enumerate(portions):
        used = items[sources == number].tolist()
        assert used == list(range(len(used)))
        assert portion.limit is None or len(used) <= portion.limit
        if mixture.end is not None and mixture.end <= LENGTH:
            assert len(used) == portion.limit
    assert (mixture.end is None) == any(portion.limit is None for portion in portions)


@given(portions)
def test_when_a_source_is_used_up_the_others_share_by_their_weights(portions: list[Portion]) -> None:
    sources, _ = _whole(Mixture(portions))
    taken = Counter(sources.tolist())
    spent = {n for n, portion in enumerate(portions) if taken[n] == portion.limit}
    lasts = [int(np.flatnonzero(sources == n)[-1]) for n in spent if taken[n]]
    cuts = [0, *(last + 1 for last in sorted(lasts)), len(sources)]
    for start, stop in pairwise(cuts):
        active = [n for n in range(len(portions)) if n not in spent or (sources[start:] == n).any()]
        total = sum(portions[n].weight for n in active)
        for n in active:
            share = (stop - start) * portions[n].weight / total
            assert abs(int((sources[start:stop] == n).sum()) - share) <= ceil(log2(len(portions))) / 2 + 1e-9


@given(portions, st.data())
def test_any_positions_and_counts_equal_those_of_the_whole(portions: list[Portion], data: st.DataObject) -> None:
    mixture = Mixture(portions)
    sources, items = _whole(mixture)
    asked = np.array(data.draw(st.lists(st.integers(0, len(sources) - 1))), np.int64)
    found = Mixture(portions).locate(asked)
    assert found[0].tolist() == sources[asked].tolist() and found[1].tolist() == items[asked].tolist()
    before = data.draw(st.integers(0, len(sources)))
    counts = Counter(sources[:before].tolist())
    assert mixture.counts(before) == [counts[n] for n in range(len(portions))]


def test_a_source_of_tiny_weight_comes_when_it_is_due_and_far_positions_are_exact() -> None:
    mixture = Mixture([Portion(1.0), Portion(1e-6), Portion(2.0)])
    exact = [Fraction(1), Fraction(1, 10**6), Fraction(2)]
    for positions in (10**7, 10**12 + 7, 10**15):
        for count, weight in zip(mixture.counts(positions), exact, strict=True):
            assert abs(count - positions * weight / sum(exact)) <= 1
    (rare,) = np.flatnonzero(Mixture([Portion(1.0), Portion(1e-4)]).locate(np.arange(14_000))[0]).tolist()
    assert 4_900 < rare < 5_100


def test_weights_are_taken_as_written() -> None:
    assert integer_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    huge = integer_weights([1 / 3, 1e-15, 1e6])
    assert huge[1] == 1 and sum(huge) < 1 << 31


@pytest.mark.parametrize("counts", [[1000], [1000, 330], [7, 64, 500]])
def test_a_slice_of_a_batch_holds_few_lanes_and_the_same_ones_in_every_batch(counts: list[int]) -> None:
    lanes, batch, workers = 16, 64, 4
    mixture = Mixture([Portion(1.0)] * len(counts))
    arrangement = Arrangement(mixture, counts, lanes, batch)
    of_first_worker = set()
    for start in range(0, 40 * batch, batch):
        placed = arrangement.at(start, start + batch)
        lane_of = placed.items % np.array(counts)[placed.sources] % lanes
        assert lane_of.tolist() == sorted(lane_of)
        of_first_worker |= set(lane_of[: batch // workers].tolist())
        sources, items = mixture.locate(np.arange(start, start + batch))
        assert sorted(zip(sources, items, strict=True)) == sorted(zip(placed.sources, placed.items, strict=True))
    assert of_first_worker <= set(range(lanes // workers + (1 if len(counts) == 1 else 3)))


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 60))
def test_any_range_of_positions_is_cut_from_the_batches(batch: int, start: int, length: int) -> None:
    mixture = Mixture([Portion(2.0), Portion(1.0, 50)])
    whole = Arrangement(mixture, [30, 50], 3, batch).at(0, 300)
    part = Arrangement(mixture, [30, 50], 3, batch).at(start, start + length)
    assert part.items.tolist() == whole.items[start : start + length].tolist()
    assert part.sources.tolist() == whole.sources[start : start + length].tolist()


def test_positions_end_where_every_source_is_used_up() -> None:
    placed = Arrangement(Mixture([Portion(1.0, 10)]), [10], 1, 4).at(8, 10)
    assert placed.items.tolist() == [8, 9]


def test_many_sources_that_stop_are_laid_out_at_once_and_all_used_up() -> None:
    limits = [1000 + 37 * n for n in range(60)]
    mixture = Mixture([Portion(1.0 + n % 7, limit) for n, limit in enumerate(limits)])
    assert mixture.end == sum(limits)
    assert mixture.counts(sum(limits)) == limits
