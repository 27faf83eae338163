"""Which hosts are worse than the others, by what each of them measured."""

import json
from dataclasses import replace
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from cluster.hosts.health_report import (
    SLOW_FRACTION,
    UNFIT_FRACTION,
    CheckPlan,
    HostReport,
    pair_rounds,
    report_lines,
    slow_hosts,
    unreachable_hosts,
)
from cluster.hosts.host_fitness import HostHealth


def ring(*rates: float) -> list[HostReport]:
    """Hosts a, b, … of equal processors; `rates[i]` is that of the link between host i and the next one."""
    names = "abcdefgh"[: len(rates)]
    return [
        HostReport(name, flops={"cpu": 8e10}, links={names[i - 1]: rates[i - 1], names[(i + 1) % len(rates)]: rates[i]})
        for i, name in enumerate(names)
    ]


@given(st.integers(2, 60))
def test_every_host_adds_up_with_both_neighbours_and_with_one_at_a_time(hosts: int) -> None:
    plan = pair_rounds(hosts)
    for pairs in plan:
        ranks = list(chain.from_iterable(pairs))
        assert len(ranks) == len(set(ranks))
    links = {frozenset(pair) for pair in chain.from_iterable(plan)}
    assert links == {frozenset((rank, (rank + 1) % hosts)) for rank in range(hosts)}
    assert sum(map(len, plan)) == len(links)
    assert len(plan) <= 3


def test_a_host_with_two_slow_links_is_named_and_its_neighbours_are_not() -> None:
    assert slow_hosts(ring(1e9, 1e9, 2e8, 2e8, 1e9), UNFIT_FRACTION) == {
        "d": "an all-reduce sends 200 MB/s, the others' median is 1,000"
    }
    assert slow_hosts(ring(1e9, 1e9, 4e8, 4e8, 1e9), UNFIT_FRACTION) == {}
    assert list(slow_hosts(ring(1e9, 1e9, 4e8, 4e8, 1e9), SLOW_FRACTION)) == ["d"]
    assert slow_hosts(ring(1e9, 2e8, 1e9), UNFIT_FRACTION) == {}  # a cable between two hosts, each with a good one


def test_of_two_hosts_on_one_slow_link_neither_is_blamed_but_a_slow_processor_is() -> None:
    one, other = HostReport("a", links={"b": 1.0}), HostReport("b", links={"a": 1.0})
    assert slow_hosts([one, other], SLOW_FRACTION) == {}
    fast, slow = replace(one, flops={"cpu": 8e10}), replace(other, flops={"cpu": 1e10})
    assert slow_hosts([fast, slow], SLOW_FRACTION) == {
        "b": "a matrix product on one cpu core runs at 10,000 MFLOP/s, the others' median is 80,000"
    }
    assert slow_hosts([fast], SLOW_FRACTION) == {}


def test_a_host_is_as_slow_as_the_slowest_of_its_gpus() -> None:
    good = [HostReport(name, flops={"cpu": 1e9, "cuda:0": 5e13, "cuda:1": 5e13}) for name in "ab"]
    throttled = HostReport("c", flops={"cpu": 1e9, "cuda:0": 5e13, "cuda:1": 6e12})
    assert list(slow_hosts([*good, throttled], UNFIT_FRACTION)) == ["c"]


def test_a_host_that_no_neighbour_reaches_is_named_if_others_reach_each_other() -> None:
    a, b = HostReport("a", links={"b": 1e9}, broken={"c": "timed out"}), HostReport("b", links={"a": 1e9})
    c = HostReport("c", broken={"b": "timed out", "a": "timed out"})
    assert unreachable_hosts([a, b, c]) == {"c": "no all-reduce with b, a: timed out"}
    assert unreachable_hosts([replace(a, links={}), c]) == {}


def test_plans_and_reports_survive_the_way_from_host_to_host() -> None:
    plan = CheckPlan("/shared", ("a", "b"), 1, "10.0.0.1:99")
    assert CheckPlan.decode(plan.encode()) == plan
    assert plan.host == "b"
    full = HostReport("a", HostHealth(1 << 30, 1 << 30, 1 << 30, -0.2), ["gpu 0 (H100)"], 5e8, {"cpu": 1e9})
    for report in (full, HostReport("b", problems=["x"])):
        assert HostReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert list(report_lines(full))[-1] == "matrix product on one cpu core 1 GFLOP/s in fp32"
