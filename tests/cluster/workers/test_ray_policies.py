"""How many workers fit."""

from cluster.workers.ray_policies import possible_workers
from tests.support.worker_settings import workers


def test_workers_fill_whole_nodes_up_to_the_most() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}, {"memory": 9.0}]
    assert possible_workers(nodes, {"CPU": 2, "GPU": 0}, 8) == 3
    assert possible_workers(nodes, {"CPU": 2, "GPU": 1}, 8) == 1
    assert possible_workers(nodes, {"CPU": 1, "GPU": 0}, 4) == 4
    assert possible_workers([{"CPU": 2.0}], {"CPU": 0.5, "GPU": 0}, 8) == 4
    assert possible_workers([], {"CPU": 1, "GPU": 0}, 4) == 0


def test_a_range_of_workers_has_two_ends_and_a_number_has_one() -> None:
    elastic, fixed = workers(count="2..4"), workers(count=3)
    assert (elastic.least, elastic.most, elastic.elastic) == (2, 4, True)
    assert (fixed.least, fixed.most, fixed.elastic) == (3, 3, False)
