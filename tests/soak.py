"""Trains under random faults for a while, then the same steps undisturbed, and compares: `make soak MINUTES=30`.

The faults are real and come about once a minute; kinds and times follow from the seed. Exit code 0 when the two runs
are equal bit for bit and nothing is left behind.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from configs.recipe import Recipe
from tests.support.training.commands import attempts, left_behind, named, start, steps_done
from tests.support.training.runs import GPT, digests, events, history, recipe_of, run_folder_of, write_text_shards

Process = subprocess.Popen[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-s", type=float, default=60.0, help="mean time between two faults")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        folder = Path(scratch)
        write_text_shards(folder, documents=400)
        try:
            struck, last_step = _rough(recipe(folder, "rough"), folder, arguments)
        except BaseException:
            for process in left_behind(folder):
                process.kill()
            raise
        print(f"undisturbed run to step {last_step}", flush=True)
        calm = start(recipe(folder, "calm"), folder, "--stop-at", str(last_step))
        output, _ = calm.communicate()
        assert calm.returncode == 75, output
        _compare(recipe(folder, "rough"), recipe(folder, "calm"), last_step)
        assert left_behind(folder) == []
    faults = ", ".join(f"{count} × {name}" for name, count in sorted(struck.items()))
    print(f"{sum(struck.values())} faults ({faults}) in {last_step} steps: equal bit for bit")
    return 0


def recipe(folder: Path, name: str) -> Recipe:
    return recipe_of(
        folder,
        GPT,
        name,
        run={"dir": str(folder / "runs"), "name": name, "steps": 1_000_000},
        checkpoint={"every_steps": 50, "keep_last": 4},
        validation={"every_steps": 500},
        monitor={"every_steps": 10},
        workers={"count": 2, "max_failures": 20},
    )


def _rough(rough: Recipe, folder: Path, arguments: argparse.Namespace) -> tuple[Counter[str], int]:
    chance, struck = random.Random(arguments.seed), Counter[str]()
    process = start(rough, folder)
    deadline = time.monotonic() + 60 * arguments.minutes
    while True:
        calm_s = arguments.every_s * chance.uniform(0.5, 1.5)
        if time.monotonic() + calm_s > deadline:
            break
        process = _train_on(process, rough, folder, calm_s)
        name = chance.choice(sorted(FAULTS))
        FAULTS[name](process, rough, chance)
        struck[name] += 1
        print(f"{name} at step {steps_done(rough)}, attempt {len(attempts(rough))}", flush=True)
    process = _train_on(process, rough, folder, max(0.0, deadline - time.monotonic()))
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    return struck, events(rough, "checkpoint")[-1]["step"]


def _train_on(process: Process, rough: Recipe, folder: Path, seconds: float) -> Process:
    """Wait until it trains again, and then for `seconds`; a driver that was ended is started again."""
    if process.poll() is not None:
        assert process.returncode in (75, -signal.SIGKILL), process.communicate()[0]
        process = start(rough, folder)
    step, patience = steps_done(rough), time.monotonic() + 180
    while steps_done(rough) <= step + 20:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < patience, f"no step after {step} within three minutes"
        time.sleep(0.2)
    time.sleep(seconds)
    return process


def _ray_process(process: Process, name: str) -> None:
    named(process, name).kill()


def _worker(sent: signal.Signals, count: int) -> Callable[[Process, Recipe, random.Random], None]:
    def strike(process: Process, rough: Recipe, chance: random.Random) -> None:
        for pid in chance.sample(attempts(rough)[-1]["pids"], count):
            os.kill(pid, sent)

    return strike


def _ray(name: str) -> Callable[[Process, Recipe, random.Random], None]:
    return lambda process, rough, chance: _ray_process(process, name)


def _driver(sent: signal.Signals) -> Callable[[Process, Recipe, random.Random], None]:
    def strike(process: Process, rough: Recipe, chance: random.Random) -> None:
        os.kill(process.pid, sent)
        process.wait(timeout=120)

    return strike


def _flip(process: Process, rough: Recipe, chance: random.Random) -> None:
    """A byte of the newest checkpoint changes, and a worker dies."""
    newest = max((run_folder_of(rough) / "checkpoints").glob("step-*"))
    path = chance.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1
    path.write_bytes(content)
    _worker(signal.SIGKILL, 1)(process, rough, chance)


FAULTS: dict[str, Callable[[Process, Recipe, random.Random], None]] = {
    "SIGKILL of a worker": _worker(signal.SIGKILL, 1),
    "SIGKILL of both workers": _worker(signal.SIGKILL, 2),
    "SIGSTOP of a worker": _worker(signal.SIGSTOP, 1),
    "SIGKILL of a worker's Ray actor": _ray("RayTrainWorker"),
    "SIGKILL of the raylet": _ray("raylet/raylet"),
    "SIGKILL of the GCS": _ray("gcs_server"),
    "SIGKILL of Ray Train's controller": _ray("TrainController"),
    "SIGKILL of the session process": _ray("cluster.session.session_main"),
    "SIGKILL of the fork server": _ray("cluster.forks.fork_server"),
    "SIGKILL of stoker train": _driver(signal.SIGKILL),
    "SIGTERM of stoker train": _driver(signal.SIGTERM),
    "a flipped bit in the newest checkpoint": _flip,
}


def _compare(rough: Recipe, calm: Recipe, last_step: int) -> None:
    assert history(rough) == history(calm)
    assert digests(rough, last_step) == digests(calm, last_step)


if __name__ == "__main__":
    sys.exit(main())
