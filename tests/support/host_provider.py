"""What Ray's autoscaler sees of tests/support/hosts.py as a cloud: it starts Ray on hosts that are there, and ends it.

Named in the cluster's file as `provider: {type: external, module: tests.support.host_provider.HostProvider, …}` with
`head`, an address, and `hosts`: by address, the command that starts Ray there. A node's id is its address.
"""

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from tests.support.hosts import HEAD_TYPE


class HostProvider(NodeProvider):
    """Lives in the autoscaler's process on the head."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._hosts: Mapping[str, list[str]] = provider_config["hosts"]
        head = {
            TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
            TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            TAG_RAY_USER_NODE_TYPE: HEAD_TYPE,
        }
        self._tags: dict[str, dict[str, str]] = {provider_config["head"]: head}
        self._rays: dict[str, subprocess.Popen[bytes]] = {}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return [node for node, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return node_id

    external_ip = internal_ip

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        free = [host for host in self._hosts if host not in self._tags]
        for host in free[:count]:
            self._tags[host] = {**tags, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
            self._rays[host] = subprocess.Popen(
                self._hosts[host], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )

    def terminate_node(self, node_id: str) -> None:
        del self._tags[node_id]
        ray = self._rays.pop(node_id)
        os.killpg(ray.pid, signal.SIGTERM)  # `ray start --block` ends what it has started
        ray.wait()
