"""Which hosts are alive, as Ray's GCS has it."""

import os
from contextlib import suppress
from typing import Any

__all__ = ["RayHosts"]


ALIVE = 0  # ray.core.generated.gcs_pb2.GcsNodeInfo.ALIVE
_GCS_TIMEOUT_S = 2


class RayHosts:
    """Asks the GCS at `address`. One per process: Ray reads where the token is when it is imported."""

    def __init__(self, address: str, token: str) -> None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
        self._address = address
        self._client: Any = None

    def alive(self) -> set[str] | None:
        """Names of the nodes that Ray counts as alive; None when the GCS does not answer within 2 s."""
        with suppress(Exception):  # Ray's errors here have no public class
            if self._client is None:
                from ray._raylet import GcsClient  # type: ignore[attr-defined]

                self._client = GcsClient(address=self._address)
            nodes = self._client.get_all_node_info(timeout=_GCS_TIMEOUT_S).values()
            return {node.node_name for node in nodes if node.state == ALIVE}
        return None
