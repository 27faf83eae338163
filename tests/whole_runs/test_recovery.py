"""The failure table of docs/operations.md: real faults on a real run, which must end as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.recipe import Recipe
from tests.support.memory_limit import CAN_LIMIT_MEMORY, no_more_memory
from tests.support.training.commands import attempts, left_behind, named, start, steps_done, train, wait_for
from tests.support.training.runs import (
    GPT,
    digests,
    events,
    history,
    recipe_of,
    run_folder_of,
    train_in_processes,
    write_text_shards,
)

pytestmark = pytest.mark.slow
STEPS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recovery")
    write_text_shards(folder, documents=400)
    return folder


def recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    setting = {
        "run": {"dir": str(folder / "runs"), "name": name, "steps": STEPS},
        "checkpoint": {"every_steps": 5, "keep_last": 2},
        "validation": {"every_steps": 20, "max_samples": 4, "sample_tokens": 4},
        "monitor": {"every_steps": 1, "audit_samples": True},
    }
    return recipe_of(folder, GPT, name, **{**setting, **sections})


@pytest.fixture(scope="module")
def calm(folder: Path) -> Recipe:
    """The undisturbed run that the others are compared with, without Ray."""
    calm = recipe(folder, "calm")
    train_in_processes(folder / "store", 2, [(calm, None)])
    return calm


@pytest.fixture(autouse=True)
def nothing_remains(folder: Path) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 400  # a killed driver's guard gives Ray a moment to leave by itself
    while left_behind(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_behind(folder) == []


def assert_as_if_nothing_had_happened(rough: Recipe, calm: Recipe) -> None:
    assert history(rough) == history(calm)
    assert digests(rough, STEPS) == digests(calm, STEPS)
    assert samples(rough) == samples(calm)


def samples(recipe: Recipe) -> dict[int, list[str]]:
    """The keys of each step of the committed history, by the last attempt that trained it, in order of rank."""
    keys: dict[int, dict[int, dict[int, list[str]]]] = {}
    for path in (run_folder_of(recipe) / "audit").iterdir():
        _, attempt, _, rank = path.stem.split("-")
        for line in path.read_text().splitlines():
            record = json.loads(line)
            keys.setdefault(record["step"], {}).setdefault(int(attempt), {})[int(rank)] = record["keys"]
    whole = {step: {a: ranks for a, ranks in tries.items() if len(ranks) == 2} for step, tries in keys.items()}
    return {
        step: [key for _, part in sorted(tries[max(tries)].items()) for key in part] for step, tries in whole.items()
    }


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_workers_that_are_killed_hang_or_raise_in_any_phase_leave_no_trace_in_the_result(
    folder: Path, calm: Recipe
) -> None:
    faults = [
        "kill:rank=1@step=7,phase=forward",
        "kill:rank=0@step=13,phase=backward",
        "kill:rank=1@step=18,phase=optimizer step",
        "kill:rank=1@step=21,phase=validating",
        "kill:rank=0@step=26,phase=saving",
        "kill:rank=0@step=33",
        "kill:rank=1@step=33",
        "raise:rank=1@step=38,phase=backward",
        "stop:rank=1@step=44,phase=backward",
        "kill:rank=1@step=1,phase=restoring the checkpoint",
    ]
    rough = recipe(folder, "workers", workers={"count": 2, "max_failures": 9})
    process = start(rough, folder, *(option for fault in faults for option in ("--chaos", fault)))
    wait_for(lambda: steps_done(rough) >= 60, process)
    if CAN_LIMIT_MEMORY:
        _kill_for_want_of_memory(rough, process)
    else:
        warnings.warn("NO WORKER RAN OUT OF MEMORY: the memory cgroup cannot be written here", stacklevel=1)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    assert {event["fault"] for event in events(rough, "chaos")} == set(faults)
    assert_as_if_nothing_had_happened(rough, calm)

    struck = next(event for event in events(rough, "chaos") if event["fault"].startswith("stop"))
    hang = next(e for e in events(rough, "fault") if e["kind"] == "HangError" and e["time"] > struck["time"])
    assert (hang["rank"], hang["step"], hang["phase"]) == (1, 43, "backward")
    assert "has not been heard of for" in hang["message"]
    logs = Path(hang["log"]).parent
    assert "which is stopped (SIGSTOP)" in (logs / "rank-1.log").read_text()
    assert "train_step" in (logs / "rank-0.log").read_text().rpartition("--- stacks of process")[2]


def _kill_for_want_of_memory(rough: Recipe, process: subprocess.Popen[str]) -> None:
    """By the kernel: rank 1, which must be told of as such."""
    before = attempts(rough)
    with no_more_memory(before[-1]["pids"][1]):
        wait_for(lambda: len(attempts(rough)) > len(before), process)
    died = [event for event in events(rough, "fault") if event["kind"] == "WorkerDied"][-1]
    assert died["rank"] == 1
    assert "was ended by SIGKILL (by somebody, or by the kernel for want of memory)" in died["message"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ray_that_breaks_anywhere_is_started_again_and_a_killed_driver_resumes(folder: Path, calm: Recipe) -> None:
    rough = recipe(folder, "ray")
    process = start(rough, folder)
    faults = [
        "raylet/raylet",
        "gcs_server",
        "TrainController",
        "RayTrainWorker",
        "cluster.session.session_main",
        "cluster.forks.fork_server",
    ]
    for name in faults:
        saved, before = len(events(rough, "checkpoint")), len(attempts(rough))
        wait_for(lambda saved=saved: len(events(rough, "checkpoint")) > saved, process)  # type: ignore[misc]
        named(process, name).kill()
        wait_for(lambda before=before: len(attempts(rough)) > before, process)  # type: ignore[misc]
    saved = len(events(rough, "checkpoint"))
    wait_for(lambda: len(events(rough, "checkpoint")) > saved, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code, output = train(rough, folder)
    assert code == 0, output
    assert re.search(r"resumed from the checkpoint of step \d", output), output
    assert_as_if_nothing_had_happened(rough, calm)


def test_a_crash_loop_ends_with_the_first_cause(folder: Path) -> None:
    # A checkpoint that is told late would make a failure count as the first after progress.
    saved = {"every_steps": 5, "keep_last": 2, "background": False}
    doomed = recipe(folder, "doomed", workers={"count": 2, "max_failures": 2}, checkpoint=saved)
    code, output = train(doomed, folder, "--chaos", "raise:rank=1@step=8,phase=forward,always")
    assert code == 1, output
    assert len(attempts(doomed)) == 3
    assert "failed: ChaosError: asked for by --chaos raise:rank=1@step=8" in output.splitlines()[-1]
    assert "Traceback" not in output
