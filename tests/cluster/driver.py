"""A small `stoker train`, run as a process of its own: `python -m tests.cluster.driver FOLDER`."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cluster.local_ray import LocalRay
from cluster.ray_train import run_workers
from cluster.stop_signals import StopSignals
from configs.recipe import Workers


def beat_until_told(config: dict[str, Any]) -> None:
    """Appends to `beats` ten times a second until the folder has `finish`."""
    folder = Path(config["folder"])
    while not (folder / "finish").exists():
        with (folder / "beats").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.1)


def main(folder: Path) -> None:
    """One worker that beats; signals are noted in `requested`, and left to the test."""
    with StopSignals() as signals:

        def poll() -> None:
            if signals.requested:
                (folder / "requested").write_text(signals.requested)

        with LocalRay(1, 0, lambda line: None):
            (folder / "session").write_text(os.environ["RAY_AUTH_TOKEN_PATH"])
            workers = Workers.model_validate({"count": 1})
            run_workers(
                beat_until_told, {"folder": str(folder)}, name="run", workers=workers, backend="gloo", poll=poll
            )
    (folder / "ended").write_text(json.dumps(sorted(name for name in os.environ if name.startswith("RAY_"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
