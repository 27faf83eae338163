"""A rank that is slower than the rest is named, once, with what it does."""

from typing import Any

import pytest

from trainer.step_health.stragglers import LISTED_RANKS, RankTimes, StragglerWatch, compare

HOSTS = ["a", "a", "b", "b"]


def watched() -> tuple[StragglerWatch, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return StragglerWatch(HOSTS, lambda message, **fields: told.append({"message": message, **fields})), told


def times(*own_s: float, wait_s: tuple[float, ...] = (0.1, 0.1, 0.1, 0.1)) -> RankTimes:
    return RankTimes(list(own_s), list(wait_s))


def test_a_slow_rank_is_told_once_until_it_is_another() -> None:
    watch, told = watched()
    for step in range(10, 90, 10):  # each interval takes 6 s: two make a window
        watch.add(step, times(2.0, 2.1, 4.9, 1.9), wall_s=6.0, steps=10)
    assert [(event["rank"], event["host"], event["step"]) for event in told] == [(2, "b", 20)]
    assert told[0]["message"].startswith(
        "rank 2 on b is slower than the rest and they wait for it: 0.5 s a step of its"
    )
    assert "computing" in told[0]["message"]
    for step in range(90, 130, 10):
        watch.add(step, times(2.0, 5.0, 2.0, 2.0), wall_s=6.0, steps=10)
    assert [event["rank"] for event in told] == [2, 1]


def test_a_rank_that_waits_for_data_is_told_as_such() -> None:
    watch, told = watched()
    watch.add(10, times(2.0, 2.0, 2.0, 2.0, wait_s=(0.1, 0.1, 0.1, 9.0)), wall_s=12.0, steps=10)
    assert (told[0]["rank"], "waiting for data" in told[0]["message"]) == (3, True)


@pytest.mark.parametrize(
    "interval",
    [
        times(2.0, 2.1, 2.6, 2.0),  # not by much
        times(0.1, 0.1, 0.5, 0.1),  # by much, of little
        times(5.0, 5.0, 5.0, 5.0, wait_s=(4.0, 4.0, 4.0, 4.0)),  # all
    ],
)
def test_what_costs_little_is_not_told(interval: RankTimes) -> None:
    watch, told = watched()
    for step in range(10, 50, 10):
        watch.add(step, interval, wall_s=12.0, steps=10)
    assert told == []


def test_figures_name_the_slowest_and_list_the_ranks_of_a_group_that_is_not_huge() -> None:
    figures = times(2.0, 2.0, 5.9, 2.0).figures()
    assert (figures["slowest_rank"], figures["slowest_rank_ratio"]) == (2, pytest.approx(6.0 / 2.1))
    assert figures["rank_own_s"] == [2.0, 2.0, 5.9, 2.0]
    huge = RankTimes([1.0] * (LISTED_RANKS + 1), [0.0] * (LISTED_RANKS + 1)).figures()
    assert huge == {"slowest_rank": 0, "slowest_rank_ratio": 1.0}
    unmeasured = times(0.0, 0.0, 0.0, 0.0).figures()  # as on a GPU
    assert unmeasured.keys() == {"rank_own_s", "rank_data_wait_s"}
    assert RankTimes([1.0], [0.0]).figures() == {}
    assert compare(RankTimes([0.0, 0.0], [0.0, 0.0])).ratio == 1.0
