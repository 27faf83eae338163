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
from functools import partial
from pathlib import Path
from typing import Any

from cluster.processes.stop_signals import HANDLED
from cluster.ray_cluster.attached_ray import AttachedRay
from cluster.ray_cluster.private_ray import PrivateRay
from cluster.run.ledger import Ledger
from cluster.workers.hang_rule import Hang
from cluster.workers.run_workers import WorkerFailure, run_workers
from cluster.workers.worker_shell import ShellOrder
from configs.errors import ClusterError, StokerError
from configs.recipe import Workers

__all__ = ["SessionPlan"]


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
    failures: dict[str, int] = field(default_factory=dict)  # so far, of cluster.workers.ray_policies.Failures

    def encode(self) -> dict[str, Any]:
        return asdict(self)


def main() -> None:
    _leave_signals_to_driver()
    plan = SessionPlan(**json.loads(sys.stdin.readline()))
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
    order, workers = ShellOrder(**plan.order), Workers.model_validate(plan.workers)

    def say(line: str) -> None:
        tell(say=line)

    def waits(room: int | None, since: float) -> None:
        _append(order, say, "room" if room is None else "waiting", since=since, room=room)

    folder = Path(plan.folder)
    ray = AttachedRay(plan.address, say) if plan.address else PrivateRay(folder, plan.cpus, plan.gpus, say)
    with ray:
        _leave_signals_to_driver()  # once more: Ray may have set its own
        # These import Ray, which reads its settings from the environment that `ray` has made.
        from cluster.ray_cluster.key_value import RunStore
        from cluster.workers.worker_watch import RayBrokenError, Watch

        store = RunStore(order.run)
        store.put("failures", plan.failures)
        store.put("room", None)  # of a session before, which waited
        hung, lost = (partial(_record, order, say, kind) for kind in ("HangError", "HostLost"))
        watch = Watch(order.run, workers, hung, lost, waits, say)
        ticked = [0.0]

        def poll() -> None:
            if time.monotonic() - ticked[0] > 1.0:
                ticked[0] = time.monotonic()
                tell(tick=True)
            if lost := ray.lost():
                raise StokerError(f"Ray's {lost} has died")
            try:
                watch.look()
            except RayBrokenError as error:
                raise StokerError(str(error)) from error

        say(f"starting {workers.count} workers")
        run_workers(
            order,
            name=plan.name,
            workers=workers,
            storage=folder / "train",
            shared=plan.address is not None,
            poll=poll,
        )


def _append(order: ShellOrder, say: Callable[[str], None], event: str, **details: Any) -> None:
    if order.ledger is None:
        return
    try:
        Ledger(Path(order.ledger)).append(event, invocation=order.invocation, **details)
    except OSError as error:  # a full disk does not end the run
        say(f"{order.ledger} cannot be written ({error.strerror}): {event} {details.get('message', '')}")


def _record(order: ShellOrder, say: Callable[[str], None], kind: str, hang: Hang) -> None:
    told, attempt = hang.told, hang.told.get("attempt", 0)
    log = Path(order.logs or ".") / f"attempt-{attempt}" / f"rank-{hang.rank}.log"
    _append(
        order,
        say,
        "fault",
        kind=kind,
        message=hang.message,
        rank=hang.rank,
        host=told.get("host"),
        pid=told.get("pid"),
        step=told.get("step", 0),
        phase=told.get("phase", "starting"),
        attempt=attempt,
        log=str(log),
        final=False,
        exit_code=1,
    )


if __name__ == "__main__":
    main()
