"""The health check on all nodes of a Ray cluster that have room for workers."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.hosts.health_process import TIMEOUT_S, HostCheck
from cluster.hosts.health_report import CheckPlan, HostReport
from cluster.hosts.network import free_port
from cluster.ray_cluster.attached_ray import AttachedRay
from configs.errors import ClusterError, first_line

__all__ = ["check_nodes"]


_SCHEDULED_S = 60.0  # for Ray to begin a task on a node that is up


def check_nodes(address: str, folder: Path, say: Callable[[str], None]) -> list[HostReport]:
    """The reports of all nodes with cpus, which are checked at the same time, by name.

    Raises ClusterError when the cluster cannot be joined, or no node has cpus.
    """
    with AttachedRay(address, say):
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise ClusterError(f"no node of the Ray cluster at {address} has cpus to train on: add nodes to it")
        nodes.sort(key=lambda node: str(node["NodeName"]))
        own = str(nodes[0]["NodeManagerAddress"])
        port = _free_port(nodes[0], own)
        names = _names(nodes)
        plans = [CheckPlan(str(folder.resolve()), names, rank, f"{own}:{port}") for rank in range(len(nodes))]
        waits = [_on(node, _check_here).remote(plan.encode()) for node, plan in zip(nodes, plans, strict=True)]
        return [_result(wait, plan.host) for wait, plan in zip(waits, plans, strict=True)]


def _free_port(node: dict[str, Any], address: str) -> int:
    import ray

    try:
        port: int = ray.get(_on(node, free_port).remote(address), timeout=_SCHEDULED_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterError(
            f"node {node['NodeName']} of the Ray cluster ran no task within {_SCHEDULED_S:.0f} s "
            f"({first_line(error)}): see that its raylet is up, and that Stoker's code is installed there"
        ) from error
    return port


def _names(nodes: list[dict[str, Any]]) -> tuple[str, ...]:
    """Ray's names, with a part of the node's id where several nodes are on one host."""
    names = [str(node["NodeName"]) for node in nodes]
    repeated = len(set(names)) < len(names)
    return tuple(f"{node['NodeName']}/{node['NodeID'][:6]}" if repeated else str(node["NodeName"]) for node in nodes)


def _on(node: dict[str, Any], function: Callable[..., Any]) -> Any:
    """A task there, whatever runs there already."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=place)


def _check_here(plan: str) -> dict[str, Any]:
    # Ray hides the gpus from a task that has not asked for any.
    environment = {name: value for name, value in os.environ.items() if value or name != "CUDA_VISIBLE_DEVICES"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # with the code that Ray has shipped
    own = CheckPlan.decode(plan)
    with tempfile.TemporaryDirectory() as folder:
        return HostCheck(own, environment, Path(folder) / "log").wait().as_dict()


def _result(wait: Any, host: str) -> HostReport:
    import ray

    try:
        return HostReport.from_dict(ray.get(wait, timeout=_SCHEDULED_S + TIMEOUT_S))
    except ray.exceptions.GetTimeoutError:
        return HostReport(host, problems=[f"Ray there did not run the check within {_SCHEDULED_S + TIMEOUT_S:.0f} s"])
    except ray.exceptions.RayError as error:
        return HostReport(host, problems=[f"Ray there could not run the check: {first_line(error)}"])
