"""A Ray cluster that somebody else runs: joined for one run, and left as it was."""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cluster.hosts.network import reaches
from configs.errors import ClusterError

__all__ = ["AttachedRay"]


_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # worker_watch.py looks for draining nodes, without an actor
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

_REACH_S = 10.0  # for a TCP connection to the GCS


class AttachedRay:
    """Inside a `with`, connected to the cluster at `address` (HOST:PORT of its GCS, or auto).

    RAY_AUTH_MODE and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH of the environment count. Raises ClusterError when the
    cluster does not answer or refuses us.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address, self._say = address, say

    def __enter__(self) -> Self:
        os.environ.update(_SETTINGS)
        own = os.environ.pop("RAY_ADDRESS", None)
        if self._address == "auto" and own:  # a job of a cluster is told which: there may be others on this host
            self._address = own
        if ":" in self._address and not reaches(self._address, _REACH_S):  # Ray itself would try for a minute and more
            raise ClusterError(
                f"nothing answers at {self._address}, where a Ray cluster's GCS should be: see that it runs, and that "
                "this machine is one of its nodes"
            )
        # Imported here because Ray reads its settings from the environment when it is imported.
        import ray
        from ray._private import worker

        worker._worker_logs_enabled = False
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and more here
            first = str(error).strip().splitlines()[:1]
            raise ClusterError(
                f"no Ray cluster could be joined at {self._address} ({type(error).__name__}: {''.join(first)}): see "
                "that it runs, that this machine is one of its nodes, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH "
                "are its own"
            ) from error
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._say(f"joined the Ray cluster at {self._address}: {len(nodes)} nodes, {_total(nodes)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()

    def lost(self) -> str | None:
        """Ray's own processes are not ours to watch here."""
        return None


def _total(nodes: list[dict[str, dict[str, float]]]) -> str:
    cpus, gpus = (sum(node["Resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{cpus:.0f} cpus, {gpus:.0f} gpus"
