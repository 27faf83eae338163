"""A small `stoker train`, run as a process of its own: `python -m tests.support.small_driver FOLDER`."""

import json
import os
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from cluster.processes.private_folder import private_folder
from cluster.processes.stop_signals import StopSignals
from cluster.ray_cluster.private_ray import PrivateRay
from cluster.workers.run_workers import run_workers
from cluster.workers.worker_shell import ShellOrder
from configs.errors import StokerError
from configs.recipe import Workers


def order_of(target: str, config: dict[str, Any], **options: Any) -> ShellOrder:
    """Workers that need no torch: their fork server imports nothing."""
    setting = {
        "modules": [],
        "backend": "gloo",
        "cpus": 1,
        "fresh": False,
        "working_folder": str(Path.cwd()),
        **options,
    }
    return ShellOrder(run=uuid.uuid4().hex, target=target, config=config, **setting)


def beat_until_told(config: dict[str, Any], link: object) -> None:
    """Appends to `beats` ten times a second until the folder has `finish`."""
    folder = Path(config["folder"])
    while not (folder / "finish").exists():
        with (folder / "beats").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.1)


def main(folder: Path) -> None:
    """As cluster/session/session_restarts.py, another Ray when one does not start: the host may be busy."""
    for _ in range(3):
        try:
            return run(folder)
        except StokerError as error:
            traceback.print_exception(error)
            if (folder / "session").exists():
                raise
    raise SystemExit(1)


def run(folder: Path) -> None:
    """One worker that beats; signals are noted in `requested`, and left to the test."""
    with StopSignals() as signals:

        def poll() -> None:
            if signals.requested:
                (folder / "requested").write_text(signals.requested)

        with private_folder() as private, PrivateRay(private, 1, 0, lambda line: None):
            (folder / "session").write_text(os.environ["RAY_AUTH_TOKEN_PATH"])
            workers = Workers.model_validate({"count": 1})
            order = order_of("tests.support.small_driver:beat_until_told", {"folder": str(folder)})
            run_workers(order, name="run", workers=workers, storage=private / "train", shared=False, poll=poll)
    (folder / "ended").write_text(json.dumps(sorted(name for name in os.environ if name.startswith("RAY_"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
