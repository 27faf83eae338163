"""Seconds from the command to the end of the first optimizer step: `stoker train` and a plain Ray Train script."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.common.setting import PLAIN_RAY_CONFIG, recipe_of
from cluster.run.run_folder import RunFolder
from configs.load import dump_recipe

STOKER, PLAIN = "stoker train", "plain Ray Train + DeepSpeed"
TIME_LIMIT_S = 240.0


def start_times(folder: Path, rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Alternating, `rounds` times each. One run of the plain script before that is not counted: it compiles."""
    say(
        f"start: a first run of the plain script, not counted: DeepSpeed compiles and keeps an operator "
        f"({_plain():.1f} s to its first step)"
    )
    found: dict[str, list[float]] = {STOKER: [], PLAIN: []}
    for index in range(rounds):
        found[STOKER].append(_stoker(folder, f"start-{index}"))
        found[PLAIN].append(_plain())
        say(f"start, round {index + 1}: " + ", ".join(f"{name} {times[-1]:.1f} s" for name, times in found.items()))
    return found


def _stoker(folder: Path, name: str) -> float:
    recipe = recipe_of(folder, name, steps=1)
    path = folder / f"{name}.yaml"
    path.write_text(dump_recipe(recipe))
    started = _run([str(Path(sys.executable).with_name("stoker")), "train", str(path)], folder / f"{name}.log")
    first_line = json.loads(RunFolder.of(recipe).metrics.read_text().splitlines()[0])
    assert first_line["step"] == 1
    return float(first_line["time"]) - started


def _plain() -> float:
    script = Path(__file__).with_name("plain_ray.py")
    # Ray's socket paths must stay short, so this folder is not inside another.
    with tempfile.TemporaryDirectory(prefix="plain-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        out = Path(scratch) / "first_step"
        started = _run([sys.executable, str(script), str(out), scratch, PLAIN_RAY_CONFIG], Path(scratch) / "log")
        return float(out.read_text()) - started


def _run(command: Sequence[str], log: Path) -> float:
    """Run to the end; the time at which it was started. Raises RuntimeError with the end of its log if it fails."""
    started = time.time()
    with session_of(command, log) as process:
        code = process.wait(TIME_LIMIT_S)
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {code}:\n" + log.read_text(errors="replace")[-3000:])
    return started


@contextmanager
def session_of(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a Unix session of its own, its output in `log`; at the end nothing of the session remains."""
    # No report to Ray's makers, and no Ray of the surroundings.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            _end_session(process)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, remaining = psutil.wait_procs(_members(process.pid), timeout=20)
    for member in remaining:
        member.kill()
    process.wait()


def _members(session: int) -> list[psutil.Process]:
    found = []
    for member in psutil.process_iter():
        try:
            if os.getsid(member.pid) == session:
                found.append(member)
        except ProcessLookupError:  # gone since it was listed
            pass
    return found
