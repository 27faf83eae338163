"""From a worker's SIGKILL to the first new step, and from the command to the first step: Stoker and plain Ray Train.

`python -m benchmarks.recovery` prints a report; with --write it goes to docs/benchmarks/recovery.md too.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.command import parser_of, run_benchmark, say
from benchmarks.common.markdown import machine, table
from benchmarks.common.setting import PLAIN_RAY_CONFIG, recipe_of
from benchmarks.step.command_start import PLAIN, STOKER, TIME_LIMIT_S, session_of
from cluster.run.ledger import read_json_lines
from cluster.run.run_folder import RunFolder
from configs.load import dump_recipe

STEPS, KILL_AFTER = 40, 24  # both take a checkpoint every ten steps: four or more are done again


@dataclass(frozen=True)
class Recovery:
    """Seconds on the wall clock."""

    start_s: float  # command to the end of the first step
    recover_s: float  # SIGKILL to the end of the first step after it


@dataclass(frozen=True)
class Step:
    """One finished step: when it ended (Unix time), its number, and the processes of the workers by rank."""

    ended: float
    number: int
    pids: list[int]


def main() -> None:
    """Parse the command line, kill a worker of each, report."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    run_benchmark(parser, "recovery.md", lambda arguments, folder, load: report(_measure(folder, arguments), load))


def _measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Recovery]]:
    from data.pack_inputs.examples import pack_stdlib

    pack_stdlib(folder / "shards")
    plain(folder / "warm")  # DeepSpeed compiles an operator for it the first time
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({STOKER: stoker(folder, f"round-{number}"), PLAIN: plain(folder / f"plain-{number}")})
        say(f"round {number + 1}: {rounds[-1]}")
    return rounds


def stoker(folder: Path, name: str) -> Recovery:
    """`stoker train` on the shards in `folder`/shards, its run named `name`."""
    recipe = recipe_of(folder, name, STEPS)
    data = recipe.model_dump(mode="json", by_alias=True)
    data["checkpoint"]["every_steps"], data["monitor"]["every_steps"], data["workers"]["max_failures"] = 10, 1, 1
    recipe = type(recipe).model_validate(data)
    path = folder / f"{name}.yaml"
    path.write_text(dump_recipe(recipe))
    run = RunFolder.of(recipe)

    def steps() -> list[Step]:
        events = [event for event in read_json_lines(run.ledger) if event["event"] == "attempt_started"]
        started: dict[int, Any] = {event["attempt"]: event for event in events}
        return [Step(x["time"], x["step"], started[x["attempt"]]["pids"]) for x in read_json_lines(run.metrics)]

    return _kill_one([str(Path(sys.executable).with_name("stoker")), "train", str(path)], folder / f"{name}.log", steps)


def plain(folder: Path) -> Recovery:
    """Ray Train with DeepSpeed's own checkpoint; its log goes to `folder`, which may not exist."""
    folder.mkdir()
    out = folder / "steps"
    # Ray's socket paths must stay short, so this folder is not inside another.
    with tempfile.TemporaryDirectory(prefix="plain-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        script = Path(__file__).with_name("plain_ray_recovery.py")

        def steps() -> list[Step]:
            lines = out.read_text().splitlines() if out.exists() else []
            fields = [line.split() for line in lines]
            return [Step(float(t), int(n), [int(pid) for pid in pids]) for t, n, *pids in fields]

        command = [sys.executable, str(script), str(out), scratch, PLAIN_RAY_CONFIG, str(STEPS)]
        return _kill_one(command, folder / "log", steps)


def _kill_one(command: list[str], log: Path, steps: Callable[[], list[Step]]) -> Recovery:
    started = time.time()
    with session_of(command, log) as process:
        before = _wait(process, steps, lambda found: found[-1].number >= KILL_AFTER)
        killed = time.time()
        os.kill(before[-1].pids[1], signal.SIGKILL)
        after = _wait(process, steps, lambda found: found[-1].ended > killed and found[-1].pids != before[-1].pids)
        recovered = next(s.ended for s in after if s.ended > killed and s.pids != before[-1].pids)
        process.wait(TIME_LIMIT_S)
    return Recovery(start_s=before[0].ended - started, recover_s=recovered - killed)


def _wait(
    process: subprocess.Popen[bytes], steps: Callable[[], list[Step]], done: Callable[[list[Step]], bool]
) -> list[Step]:
    deadline = time.monotonic() + TIME_LIMIT_S
    while True:
        found = steps()
        if found and done(found):
            return found
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not get on: exit code {process.poll()}")
        time.sleep(0.05)


def report(rounds: list[dict[str, Recovery]], load: float) -> str:
    """The report in Markdown; `load` is the load average before."""
    names = [STOKER, PLAIN]
    rows = []
    for title, field, goal in (
        ("command to first step", "start_s", 0.7),
        ("SIGKILL of a worker to first new step", "recover_s", 0.4),
    ):
        values = {name: [getattr(each[name], field) for each in rounds] for name in names}
        ratio = statistics.median(a / b for a, b in zip(values[STOKER], values[PLAIN], strict=True))
        verdict = "met" if ratio <= goal else "short"
        rows.append([title, *(_spread(values[name]) for name in names), f"**{ratio:.2f}** (≤ {goal}: {verdict})"])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "ray"))
    return (
        "# Speed of recovery\n\n"
        f"`make bench-recovery` on {date.today()}: {machine()}; load average before it {load:.1f}; {versions}.\n\n"
        "A GPT of 4.9 M parameters, 2 workers, ZeRO-1, a checkpoint every 10 steps; rank 1's process is killed "
        f"after step {KILL_AFTER}. **Plain**: `benchmarks/recovery/plain_ray_recovery.py`, Ray Train's defaults, one "
        "restart, DeepSpeed's own checkpoint; it ran once before. Medians of the rounds with the least and the most; "
        "ratios compare the two of one round.\n\n" + table(["seconds", *names, "ratio"], rows) + "\n"
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} – {max(values):.1f})"


if __name__ == "__main__":
    main()
