"""Watches the running workers from beside them: hangs, nodes that are about to go, nodes that came."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.group_store import GroupStore, RunStore
from cluster.hang_watch import Beat, Hang, find_hang, observe
from cluster.train_policies import possible_workers, usable_nodes
from configs.recipe import Workers

_LOOK_S = 0.5
_NODES_S = 2.0
_OBEY_S = 30.0
_END_S = 60.0


class RayBrokenError(Exception):
    """Ray itself, rather than a worker, has failed: it has to be started anew."""


@dataclass
class Watch:
    """`look` is called a few times a second. `hung` is told of each hang before the workers are stopped."""

    run: str
    workers: Workers
    hung: Callable[[Hang], None]
    _group: GroupStore | None = None
    _world: int = 0
    _beats: dict[int, Beat] = field(default_factory=dict)
    _looked: float = 0.0
    _looked_at_nodes: float = 0.0
    _ordered: float | None = None
    _ending: float | None = None
    _left: bool = False

    def look(self) -> None:
        """Raises RayBrokenError when the workers do not obey, or the GCS does not answer."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            self._follow(RunStore(self.run).newest_group())
            if self._group is not None:
                self._watch(self._group, now)
        except ray.exceptions.RayError as error:
            raise RayBrokenError(f"Ray's GCS does not answer: {error}") from error

    def _follow(self, group: GroupStore | None) -> None:
        if group is not None and group != self._group:
            self._group, self._world = group, int(group.get("world"))
            self._beats, self._ordered, self._ending, self._left = {}, None, None, False

    def _watch(self, group: GroupStore, now: float) -> None:
        if self._ordered is not None:
            if now - self._ordered > _OBEY_S:
                raise RayBrokenError(
                    f"the workers were told to stop {_OBEY_S:.0f} s ago, and Ray has not replaced them"
                )
            return
        for rank in range(self._world):
            told: dict[str, Any] | None = group.get(f"beat/{rank}")
            if told is not None:
                self._beats[rank] = observe(self._beats.get(rank), told, now)
        if self._is_ending(group, now):
            return
        hang = find_hang(self._beats, now, hang_timeout_s=self.workers.hang_timeout_s)
        if hang is not None:
            self.hung(hang)
            group.order(abort=hang.message)
            self._ordered = now
        elif not self._left and now - self._looked_at_nodes > _NODES_S:
            self._looked_at_nodes = now
            self._watch_nodes(group)

    def _is_ending(self, group: GroupStore, now: float) -> bool:
        """Whether a worker has ended, and Ray Train still has time to end or replace the others."""
        if self._ending is None and group.get("ended") is not None:
            self._ending = now
        return self._ending is not None and now - self._ending < _END_S

    def _watch_nodes(self, group: GroupStore) -> None:
        hosts = {beat.told.get("node") for beat in self._beats.values()}
        if hosts & set(ray._private.state.state.get_draining_nodes()):
            group.order(leave="preemption")
            self._left = True
        elif self.workers.elastic and len(self._beats) == self._world:
            each = {"CPU": float(self.workers.cpus), "GPU": float(self.workers.gpus)}
            if possible_workers(usable_nodes(), each, self.workers.most) > self._world:
                group.order(leave="resize")
                self._left = True
