"""`stoker train` as a user runs it, for tests: real Ray, real processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from configs.load import dump_recipe
from configs.recipe import Recipe
from tests.support.training.runs import events, run_folder_of

_TAIL_BYTES = 1 << 13  # some lines of metrics
STOKER = Path(sys.executable).with_name("stoker")


def start(
    recipe: Recipe, folder: Path, *options: str, place: Callable[..., list[str]] | None = None
) -> subprocess.Popen[str]:
    """`stoker train` in a process group of its own, as a terminal would start it; `place` puts it on another host."""
    path = folder / f"{recipe.run.name}.yaml"
    path.write_text(dump_recipe(recipe))
    command = [str(STOKER), "train", str(path), *options]
    return subprocess.Popen(
        place(*command) if place else command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(recipe: Recipe, folder: Path, *options: str) -> tuple[int, str]:
    process = start(recipe, folder, *options)
    output, _ = process.communicate(timeout=1200)
    return process.returncode, output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 1200) -> None:
    """The limit bounds a hang: a busy machine starts a run in minutes, and again after a fault."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def steps_done(recipe: Recipe) -> int:
    path = run_folder_of(recipe) / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:  # asked many times a second: the end alone
        file.seek(-min(path.stat().st_size, _TAIL_BYTES), os.SEEK_END)
        *whole, _torn = file.read().split(b"\n")
    return int(json.loads(whole[-1])["step"]) if whole else 0


def attempts(recipe: Recipe) -> list[dict[str, Any]]:
    return events(recipe, "attempt_started")


def named(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """The living process below `stoker train` whose command line or title has `name`; Ray may just be starting it."""
    found: list[psutil.Process] = []

    def there() -> bool:
        for each in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # and zombies, which are no more either
                if name in " ".join(each.cmdline()) or name in each.name():
                    found.append(each)
        return bool(found)

    wait_for(there, process)
    return found[0]


def left_behind(folder: Path) -> list[psutil.Process]:
    """Processes with the test's folder on their command line, as working folder or as home of their files."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and _mentions(p, str(folder))]


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return text in process.cwd() or any(text in argument for argument in process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
