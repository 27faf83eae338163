"""Lets `stoker data pack` publish so many records of finished shards and no more: a fact to interrupt it at."""

import os
from pathlib import Path

# Imported by every Python process that finds it, at its start.
_GATE = """
import os, sys, time
limit, parent = int(os.environ["RECORDS_LIMIT"]), os.getppid()
def hook(event, arguments):
    if event == "os.rename" and os.path.basename(os.path.dirname(str(arguments[1]))) == "records":
        while sum(name.endswith(".json") for name in os.listdir(os.path.dirname(arguments[1]))) >= limit:
            time.sleep(0.005)
            if os.getppid() != parent:
                os._exit(1)
sys.addaudithook(hook)
"""


def make_gate(folder: Path) -> None:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_GATE)


def gated(folder: Path, limit: int) -> dict[str, str]:
    """The environment of a command that stops at `limit` records, and waits there."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "RECORDS_LIMIT": str(limit), "PYTHONPATH": path}
