"""Have this node of a Ray cluster drained: the run on it saves a checkpoint and leaves, then Ray ends the node."""

import os
import time
from collections.abc import Callable
from typing import Any

from cluster.ray_cluster.live_hosts import ALIVE
from configs.errors import ClusterError, first_line

__all__ = ["drain_this_node"]


_PREEMPTION = 2  # ray.core.generated.autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
_DRAIN_POLL_S = 0.5


def drain_this_node(address: str, grace_s: int, say: Callable[[str], None]) -> bool:
    """True once Ray has ended the node because all has left it; False if that takes longer than `grace_s`.

    `address`: HOST:PORT of the cluster's GCS, or auto. Raises ClusterError when there is no such node, or Ray refuses.
    """
    from ray._private import services
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    try:
        own = os.environ.get("RAY_ADDRESS") if address == "auto" else None
        gcs = services.canonicalize_bootstrap_address_or_die(own or address)
        client = GcsClient(address=gcs)
        node = _this_node(client, services.get_node_ip_address(gcs))
        deadline_ms = int((time.time() + grace_s) * 1000)
        accepted, why = client.drain_node(node.hex(), _PREEMPTION, "the node is taken away", deadline_ms)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(f"no Ray node here at {address} that could be drained: {first_line(error)}") from error
    if not accepted:
        raise ClusterError(f"Ray refuses to drain this node: {why}")
    say(f"draining this node: what runs on it has {grace_s} s to save its state and leave")
    try:
        return _await_end(client, node, grace_s)
    except RayError as error:
        raise ClusterError(f"Ray does not say any more whether this node has ended: {first_line(error)}") from error


def _this_node(client: Any, host: str) -> bytes:
    nodes = client.get_all_node_info()
    for node_id, info in nodes.items():
        if info.node_manager_address == host and info.state == ALIVE:
            return bytes(node_id.binary())
    raise ValueError(f"none of the cluster's nodes that live is at {host}")


def _await_end(client: Any, node: bytes, grace_s: int) -> bool:
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        alive = {node_id.binary() for node_id, info in client.get_all_node_info().items() if info.state == ALIVE}
        if node not in alive:
            return True
        time.sleep(_DRAIN_POLL_S)
    return False
