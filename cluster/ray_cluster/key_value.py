"""What the processes of a run send each other through Ray's GCS: beats, orders, the place where the ranks meet.

Ray carries it, behind its token, to every host; nobody needs a port of their own. Values are small JSON. Every call
raises what Ray raises when the GCS does not answer within 5 s.
"""

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["GroupStore", "RunStore"]


_NAMESPACE = b"stoker"
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class RunStore:
    """The keys of one `stoker train`: several may share a Ray cluster."""

    run: str

    def put(self, key: str, value: Any) -> None:
        """Set `key` to a JSON value, over any that was there."""
        _gcs().internal_kv_put(f"{self.run}/{key}".encode(), json.dumps(value).encode(), True, _NAMESPACE, _TIMEOUT_S)

    def get(self, key: str) -> Any:
        """The value of `key`, or None."""
        found = _gcs().internal_kv_get(f"{self.run}/{key}".encode(), _NAMESPACE, _TIMEOUT_S)
        return None if found is None else json.loads(found)

    def clear(self) -> None:
        """Remove all of it, when the run leaves a Ray that goes on."""
        _gcs().internal_kv_del(f"{self.run}/".encode(), True, _NAMESPACE, _TIMEOUT_S)

    @property
    def committed(self) -> int:
        """The step of the newest published checkpoint that a worker has put here; 0 before the first."""
        return int(self.get("committed") or 0)

    def group(self, name: str) -> "GroupStore":
        """The keys of the worker group `name`, below those of the run."""
        return GroupStore(f"{self.run}/{name}", name)

    def newest_group(self) -> "GroupStore | None":
        """That of the worker group that was started last, if any was."""
        name = self.get("group")
        return None if name is None else self.group(name)


@dataclass(frozen=True)
class GroupStore(RunStore):
    """The keys of one start of the workers."""

    name: str

    def order(self, **order: str) -> None:
        """Orders every shell of the group: {"abort": why} to end its process, {"leave": why} at a step boundary."""
        self.put("order", order)


def _gcs() -> Any:
    from ray._private.worker import global_worker

    return global_worker.gcs_client
