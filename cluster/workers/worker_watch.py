"""Watches the running workers from beside them: hangs, nodes that are about to go, nodes that came."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.ray_cluster.key_value import GroupStore, RunStore
from cluster.workers.hang_rule import Beat, Hang, find_hang, observe
from cluster.workers.ray_policies import answering, possible_workers, usable_nodes
from configs.recipe import Workers

__all__ = ["RayBrokenError", "WorkerWatch"]


_LOOK_S = 0.5
_NODES_S = 2.0
_HOSTS_S = 1.0
_DEATH_S = 90.0  # Ray learns of a dead host after 62 s by its defaults
_OBEY_S = _DEATH_S  # it obeys no more
_END_S = 180.0  # a busy machine takes another minute to start processes
_PATIENCE_S = 5.0  # for nodes that are about to join
_WAITING_REPORT_S = 60.0


class RayBrokenError(Exception):
    """Ray itself, rather than a worker, has failed: it has to be started anew."""


@dataclass
class WorkerWatch:
    """`look` is called a few times a second.

    `hung` is told of each hang before the workers are stopped, `lost` of each host that Ray counts as dead, `waits` of
    the workers that there is room for and since when (as time.time) while there is too little, and None when there is.
    """

    run: str
    workers: Workers
    hung: Callable[[Hang], None]
    lost: Callable[[Hang], None]
    waits: Callable[[int | None, float], None]
    say: Callable[[str], None]
    _group: GroupStore | None = None
    _world: int = 0
    _beats: dict[int, Beat] = field(default_factory=dict)
    _looked: float = 0.0
    _looked_at_nodes: float = 0.0
    _looked_at_hosts: float = 0.0
    _ordered: float | None = None
    _ending: float | None = None
    _left: bool = False
    _report_waiting_at: float | None = None
    _waits_since: float = 0.0
    _waiting_reported: bool = False
    _dead: set[str] = field(default_factory=set)
    _former: dict[str, tuple[int, Beat, float]] = field(default_factory=dict)  # of groups before, for a while

    def look(self) -> None:
        """Raises RayBrokenError when the workers do not obey, or the GCS does not answer."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            group = RunStore(self.run).newest_group()  # read first: a new group's start ends the waiting
            room = RunStore(self.run).get("room")
            self._report_waiting(room, now)
            self._report_lost_hosts(now)
            self._follow(group, now)
            if self._group is not None and room is None:
                self._watch(self._group, now)
            elif self._group is not None:  # Ray Train has given it up, and leaves what lives of it alone
                self._abort(self._group, "Ray Train starts the workers anew, and waits for room", now)
                self._ending = now
        except ray.exceptions.RayError as error:
            raise RayBrokenError(f"Ray's GCS does not answer: {error}") from error

    def _report_waiting(self, room: int | None, now: float) -> None:
        """Soon, and then once a minute, for as long as the workers do not fit."""
        if room is None:
            if self._waiting_reported:
                self.waits(None, time.time())
            self._report_waiting_at, self._waiting_reported = None, False
        elif self._report_waiting_at is None:
            self._report_waiting_at, self._waits_since = now + _PATIENCE_S, time.time()
        elif now > self._report_waiting_at:
            if not self._waiting_reported:
                self.waits(room, self._waits_since)
            self._report_waiting_at, self._waiting_reported = now + _WAITING_REPORT_S, True
            each = f"{self.workers.cpus} cpus, {self.workers.gpus} gpus"
            self.say(
                f"waiting for room: {self.workers.least} × ({each}) are needed, what is up has room for {room}: add "
                "nodes, or stop this and lower workers.count"
            )

    def _report_lost_hosts(self, now: float) -> None:
        """Once each. The other workers end at once; they may have done so, and be replaced, before Ray knows why."""
        if now - self._looked_at_hosts < _HOSTS_S:
            return
        self._looked_at_hosts = now
        own = {str(beat.facts.get("node")): (rank, beat) for rank, beat in self._beats.items() if not self._left}
        former = {node: (rank, beat) for node, (rank, beat, until) in self._former.items() if now < until}
        if not own and not former:
            return
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for node, (rank, beat) in (former | own).items():
            if node not in alive | self._dead:
                self._dead.add(node)
                message = f"host {beat.facts.get('host')} is lost: its Ray node has ended or cannot be reached"
                self.lost(Hang(rank, message, beat.facts))
                if node in own and self._group is not None:
                    self._abort(self._group, message, now)

    def _follow(self, group: GroupStore | None, now: float) -> None:
        if group is not None and group != self._group:
            if not self._left:  # or their hosts may go
                until = now + _DEATH_S
                self._former |= {str(beat.facts.get("node")): (r, beat, until) for r, beat in self._beats.items()}
            self._group, self._world = group, int(group.get("world"))
            self._beats, self._ordered, self._ending, self._left = {}, None, None, False

    def _watch(self, group: GroupStore, now: float) -> None:
        for rank in range(self._world):
            told: dict[str, Any] | None = group.get(f"beat/{rank}")
            if told is not None:
                self._beats[rank] = observe(self._beats.get(rank), told, now)
        if self._ending is None and group.get("ended") is not None:
            self._ending = now
        if self._ending is None and self._ordered is not None:
            if now - self._ordered > _OBEY_S:
                raise RayBrokenError(f"the workers were told to stop {_OBEY_S:.0f} s ago, and none has")
        elif self._ending is None or now - self._ending > _END_S:
            self._judge(group, now)

    def _judge(self, group: GroupStore, now: float) -> None:
        """Once a worker has ended, of those that are left alone: there may be a long last checkpoint."""
        beats, silent_s = self._beats, self.workers.hang_timeout_s
        if self._ending is not None:
            beats = {rank: beat for rank, beat in beats.items() if now - beat.changed < silent_s}
            if not beats or self._ordered is not None:
                raise RayBrokenError(f"a worker ended {_END_S:.0f} s ago, and Ray has not replaced the workers")
        hang = find_hang(beats, now, hang_timeout_s=silent_s)
        if hang is not None:
            self.hung(hang)
            self._abort(group, hang.message, now)
        elif self._ending is None and not self._left and now - self._looked_at_nodes > _NODES_S:
            self._looked_at_nodes = now
            self._watch_nodes(group)

    def _abort(self, group: GroupStore, why: str, now: float) -> None:
        if self._ordered is None:
            group.order(abort=why)
            self._ordered = now

    def _watch_nodes(self, group: GroupStore) -> None:
        hosts = {beat.facts.get("node") for beat in self._beats.values()}
        if hosts & set(ray._private.state.state.get_draining_nodes()):
            self._leave(group, "preemption")
        elif self.workers.elastic and len(self._beats) == self._world and self._has_more_room():
            self._leave(group, "resize")

    def _has_more_room(self) -> bool:
        """Ray counts a lost host as alive for a while: what seems to be new room is tried."""
        each = {"CPU": float(self.workers.cpus), "GPU": float(self.workers.gpus)}
        nodes = usable_nodes()
        return (
            possible_workers(nodes, each, self.workers.most) > self._world
            and possible_workers(answering(nodes, each), each, self.workers.most) > self._world
        )

    def _leave(self, group: GroupStore, why: str) -> None:
        group.order(leave=why)
        self._left, self._former = True, {}  # whose hosts may go
