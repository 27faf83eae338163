"""The process that holds Ray for one `stoker train`: `python -m cluster.session.session_main`.

Reads one line of JSON, tells the driver what happens in lines of JSON, and leaves when the driver does. Imports neither
torch nor DeepSpeed.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.processes.stop_signals import HANDLED
from cluster.ray_cluster.attached_ray import AttachedRay
from cluster.ray_cluster.private_ray import PrivateRay
from cluster.run.events import Event
from cluster.run.faults import FaultPlace
from cluster.run.ledger import Ledger
from cluster.run.run_events import Fault, RoomFound, Waiting
from cluster.workers.hang_rule import Hang
from cluster.workers.run_workers import WorkerFailure, run_workers
from cluster.workers.worker_shell import ShellOrder
from configs.errors import ClusterError, StokerError
from configs.recipe import Workers

__all__ = ["SessionPlan"]


_TICK_S = 1.0  # session_process.py calls a session silent that has not ticked for long


@dataclass(frozen=True)
class SessionPlan:
    """What the driver tells its session; plain data."""

    order: dict[str, Any]  # of ShellOrder
    workers: dict[str, Any]
    name: str
    folder: str  # the driver's private one
    cpus: int
    gpus: int
    address: str | None
    failures: dict[str, int] = field(default_factory=dict)  # so far, of failure_count.Failures

    def encode(self) -> dict[str, Any]:
        """For one line of JSON."""
        return asdict(self)


def main() -> None:
    """Reads the plan from stdin, and ends with one last message: `done`, `failed` or `broken`."""
    _leave_signals_to_driver()
    plan = SessionPlan(**json.loads(sys.stdin.readline()))
    if plan.address is None:
        # Ray puts a driver's working folder on its workers' path: a user's own data.py there would come before ours.
        os.chdir(plan.folder)
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    threading.Thread(target=_leave_with_driver, daemon=True).start()

    def tell(**message: Any) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    try:
        _run(plan, tell)
    except WorkerFailure as failure:
        tell(failed=str(failure), details=failure.details, exit_code=failure.exit_code)
    except ClusterError as error:
        tell(failed=str(error), details="", exit_code=error.exit_code)
    except StokerError as error:
        tell(broken=str(error))
    else:
        tell(done=True)
    os._exit(0)  # Ray's threads may hang when the interpreter ends


def _leave_signals_to_driver() -> None:
    """The end of a `ray job` signals every process below the driver, which alone decides.

    A handler rather than SIG_IGN, which Ray's own processes would inherit.
    """
    for number in HANDLED:
        signal.signal(number, lambda *_: None)


def _leave_with_driver() -> None:
    sys.stdin.read()
    os._exit(1)


def _run(plan: SessionPlan, tell: Any) -> None:
    def say(line: str) -> None:
        tell(say=line)

    folder = Path(plan.folder)
    ray = AttachedRay(plan.address, say) if plan.address else PrivateRay(folder, plan.cpus, plan.gpus, say)
    with ray:
        _leave_signals_to_driver()  # once more: Ray may have set its own
        order, workers = ShellOrder(**plan.order), Workers.model_validate(plan.workers)
        poll = _poll(plan, order, workers, ray.lost, tell)
        say(f"starting {workers.count} workers")
        run_workers(
            order,
            name=plan.name,
            workers=workers,
            storage=folder / "train",
            shared=plan.address is not None,
            poll=poll,
        )


def _poll(
    plan: SessionPlan, order: ShellOrder, workers: Workers, lost: Callable[[], str | None], tell: Any
) -> Callable[[], None]:
    """What is looked at a few times a second while the workers run. Raises StokerError when Ray itself is broken.

    It tells the driver of each second: a session that says nothing for long is taken for stopped.
    """
    # These import Ray, which reads its settings from the environment that the Ray above has made.
    from cluster.ray_cluster.key_value import RunStore
    from cluster.workers.worker_watch import RayBrokenError, WorkerWatch

    store = RunStore(order.run)
    store.put("failures", plan.failures)
    store.put("room", None)  # of a session before, which waited
    record = _Recorder(order, lambda line: tell(say=line))
    watch = WorkerWatch(order.run, workers, record.hung, record.lost, record.waits, record.say)
    ticked_s = 0.0

    def poll() -> None:
        nonlocal ticked_s
        if time.monotonic() - ticked_s > _TICK_S:
            ticked_s = time.monotonic()
            tell(tick=True)
        if broken := lost():
            raise StokerError(f"Ray's {broken} has died")
        try:
            watch.look()
        except RayBrokenError as error:
            raise StokerError(str(error)) from error

    return poll


@dataclass(frozen=True)
class _Recorder:
    """What is seen of the workers from beside them -> the ledger."""

    order: ShellOrder
    say: Callable[[str], None]

    def hung(self, hang: Hang) -> None:
        """A worker does not get on."""
        self._append(self._fault("HangError", hang))

    def lost(self, hang: Hang) -> None:
        """A worker's host is gone."""
        self._append(self._fault("HostLost", hang))

    def waits(self, room: int | None, since: float) -> None:
        """For room for more workers than `room`; None: there is enough."""
        kind = RoomFound if room is None else Waiting
        self._append(kind(invocation=self.order.invocation, since=since, room=room))

    def _append(self, event: Event) -> None:
        if self.order.folder is not None:
            Ledger(self.order.folder.ledger).try_append(event, self.say)

    def _fault(self, kind: str, hang: Hang) -> Fault:
        beat, attempt, folder = hang.facts, hang.facts.get("attempt", 0), self.order.folder
        place = FaultPlace(
            attempt=attempt,
            invocation=self.order.invocation,
            rank=hang.rank,
            host=beat.get("host"),
            pid=beat.get("pid"),
            step=beat.get("step", 0),
            phase=beat.get("phase", "starting"),
            log=str(folder.log(attempt, hang.rank)) if folder else "",
        )
        return Fault.seen(kind, hang.message, place)


if __name__ == "__main__":
    main()
