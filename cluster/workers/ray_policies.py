"""How Ray Train decides for us: how many workers to start, and whether a failure is worth another start."""

import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cluster.hosts.resources import count_that_fit
from cluster.ray_cluster.key_value import RunStore
from cluster.run.ledger import Ledger
from cluster.run.run_events import FailureNotCounted
from cluster.workers.failure_count import Failures
from cluster.workers.worker_shell import ShellOrder
from configs.errors import StokerError, WorkersLeftError

_LOOK_S = 0.5
_ANSWER_S = 1.0
_LAST_LOOK_S = 5.0
_TRIED_AT_ONCE = 128


def possible_workers(nodes: Sequence[Mapping[str, float]], each: Mapping[str, float], most: int) -> int:
    """How many workers that need `each` fit on `nodes`, at most `most`."""
    needs = {name: amount for name, amount in each.items() if amount > 0}
    return min(
        most, sum(min(count_that_fit(amount, node.get(name, 0.0)) for name, amount in needs.items()) for node in nodes)
    )


class Node(dict[str, float]):
    """Resources by name; `address` is the raylet's, host and port."""

    address: tuple[str, int] = ("", 0)


def usable_nodes() -> list[Node]:
    """Every node that Ray counts as alive and that is not about to be taken away."""
    draining = ray._private.state.state.get_draining_nodes()
    nodes = []
    for told in ray.nodes():
        if told["Alive"] and told["NodeID"] not in draining:
            nodes.append(node := Node(told["Resources"]))
            node.address = told["NodeManagerAddress"], told["NodeManagerPort"]
    return nodes


def lost_hosts(nodes: Collection[str]) -> list[str]:
    """Of these Ray nodes the names of those that are not alive, that Ray drains, or whose raylet does not answer."""
    told = {node["NodeID"]: node for node in ray.nodes()}
    draining = ray._private.state.state.get_draining_nodes()

    def lost(node: str) -> bool:
        found = told.get(node)
        if found is None or not found["Alive"] or node in draining:
            return True
        return not _answers((found["NodeManagerAddress"], found["NodeManagerPort"]))

    with ThreadPoolExecutor(max(1, min(_TRIED_AT_ONCE, len(nodes)))) as pool:
        gone = [node for node, is_lost in zip(nodes, pool.map(lost, nodes), strict=True) if is_lost]
    return [str(told[node]["NodeManagerHostname"]) if node in told else node for node in gone]


def answering(nodes: Sequence[Node], each: Mapping[str, float]) -> list[Node]:
    """Those with room for a worker whose raylet accepts connections: Ray counts a lost host as alive for a minute."""
    large = [node for node in nodes if possible_workers([node], each, 1)]
    with ThreadPoolExecutor(max(1, min(_TRIED_AT_ONCE, len(large)))) as pool:
        answers = pool.map(_answers, [node.address for node in large])
        return [node for node, answered in zip(large, answers, strict=True) if answered]


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, _ANSWER_S).close()
    except OSError:
        return False
    return True


class AsManyAsFit(FixedScalingPolicy):  # type: ignore[misc]  # ray is not typed
    """As many workers as the nodes that live have room for, between `least` and `most`.

    A running group is never resized from here: worker_watch.py has the workers leave with a checkpoint first. Without
    `ask_autoscaler` no process is started that would only talk to an autoscaler.
    """

    def __init__(self, scaling_config: ScalingConfig, run: str, least: int, most: int, *, ask_autoscaler: bool) -> None:
        super().__init__(scaling_config)
        self._run, self._least, self._most, self._ask = run, least, most, ask_autoscaler
        self._waits = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        if self._ask:
            self._maybe_send_resource_request()
        each = self.scaling_config._resources_per_worker_not_none
        # Workers that are placed on a host which is gone keep Ray Train waiting for half a minute.
        count = possible_workers(answering(usable_nodes(), each), each, self._most)
        waits = count < self._least
        if waits or self._waits:  # cluster/workers/worker_watch.py tells of it
            RunStore(self._run).put("room", count if waits else None)
            self._waits = waits
        if waits:
            time.sleep(_LOOK_S)
            return NoopDecision()
        return ResizeDecision(num_workers=count, resources_per_worker=each)

    def make_decision_for_running_worker_group(self, **_: Any) -> ScalingDecision:
        return NoopDecision()

    def after_controller_start(self, train_run_context: Any) -> None:
        if self._ask:
            super().after_controller_start(train_run_context)

    def _get_num_workers_for_resource_request(self) -> int:
        return self._most


class CountWithoutProgress(FailurePolicy):  # type: ignore[misc]
    """A StokerError ends the run: it would only come again. Workers that left by plan, or lost a host, cost nothing.

    The count lies in the run's store, so that it outlives a controller.
    """

    def __init__(self, failure_config: FailureConfig, order: ShellOrder, most: int) -> None:
        super().__init__(failure_config)
        self._order, self._most = order, most

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        errors = worker_errors(training_failed_error).values()
        if any(isinstance(error, StokerError) for error in errors) or isinstance(
            training_failed_error, ControllerError
        ):
            return FailureDecision.RAISE
        if any(isinstance(error, WorkersLeftError) for error in errors):
            return FailureDecision.RETRY
        return FailureDecision.RETRY if count_failure(self._order, self._most) else FailureDecision.RAISE


def count_failure(order: ShellOrder, most: int) -> bool:
    """Count one failure of the run; whether it may have another try. One that came with a lost host is not its own."""
    store = RunStore(order.run)
    before, committed, nodes = failures_of(store), store.committed, _failed_nodes(store)
    lost = lost_hosts(nodes)
    deadline = time.monotonic() + _LAST_LOOK_S
    while not lost and not before.another(committed).may_go_on(most) and _others(nodes) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)  # what ends a host may end the worker first
        lost = lost_hosts(nodes)
    failures = before.another(committed, lost_host=bool(lost))
    store.put("failures", failures.encode())
    if lost and order.folder is not None:
        event = FailureNotCounted(hosts=lost, in_a_row=failures.with_lost_host, invocation=order.invocation)
        # Ray's log of this process is the next best place.
        Ledger(order.folder.ledger).try_append(event, lambda line: print(line, file=sys.stderr))  # noqa: T201
    return failures.may_go_on(most)


def failures_of(store: RunStore) -> Failures:
    """Those of the run so far."""
    return Failures(**(store.get("failures") or {}))


def _failed_nodes(store: RunStore) -> list[str]:
    """Where the newest group was, the first time that it is asked: no later failure is of that group."""
    group = store.newest_group()
    if group is None or group.get("judged"):
        return []
    group.put("judged", True)
    return list(group.get("nodes"))


def _others(nodes: Collection[str]) -> set[str]:
    return set(nodes) - {ray.get_runtime_context().get_node_id()}


def worker_errors(error: BaseException) -> dict[int, BaseException]:
    """What each failed rank raised, for an error of `fit`; empty when no worker is to blame."""
    return dict(error.worker_failures) if isinstance(error, WorkerGroupError) else {}
