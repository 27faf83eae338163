"""A real run with a killed worker and a slow one: where its time went, who was slow, what the last line says."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.run.ledger import read_json_lines
from configs.recipe import Recipe
from tests.support.training.commands import STOKER, attempts, start, wait_for
from tests.support.training.runs import GPT, events, recipe_of, run_folder_of, write_text_shards

pytestmark = pytest.mark.slow


def test_a_rough_run_tells_where_its_time_went_which_rank_was_slow_and_why_it_restarted(tmp_path: Path) -> None:
    recipe, output, slowed_at = rough_run(tmp_path)
    assert_the_slow_rank_is_named(recipe, output, slowed_at)
    assert_the_time_is_accounted_for(recipe)
    assert_the_restart_and_the_last_line_tell_where_and_why(recipe, output)


def rough_run(folder: Path) -> tuple[Recipe, list[str], float]:
    """Rank 1 is killed in step 38; in the next attempt it may run a third of the time. Ends when that is noticed.

    Also the time at which it was slowed down.
    """
    write_text_shards(folder)
    recipe = recipe_of(
        folder,
        GPT,
        "rough",
        run={"dir": str(folder / "runs"), "name": "rough", "steps": 100_000},
        checkpoint={"every_steps": 10, "keep_last": 2},
        validation={"every_steps": 15},
        monitor={"every_steps": 4},
    )
    process = start(recipe, folder, "--chaos", "kill:rank=1@step=38")
    wait_for(lambda: any(event["step"] >= 40 for event in events(recipe, "checkpoint")), process)
    slow = psutil.Process(attempts(recipe)[-1]["pids"][1])
    slowed_at = time.time()
    with _Slowed(slow):
        wait_for(lambda: bool(_named(recipe)), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 75, output
    return recipe, output.splitlines(), slowed_at


class _Slowed(threading.Thread):
    """Stops a process for 40 ms of every 60."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__()
        self._process, self._over = process, threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            self._process.suspend()
            time.sleep(0.04)
            self._process.resume()


def _named(recipe: Recipe) -> list[dict[str, Any]]:
    return [event for event in events(recipe, "warning") if event.get("kind") == "straggler"]


def _status(recipe: Recipe, *options: str) -> str:
    command = [STOKER, "status", str(run_folder_of(recipe)), *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout


def assert_the_slow_rank_is_named(recipe: Recipe, output: list[str], slowed_at: float) -> None:
    named = _named(recipe)[-1]
    attempt = attempts(recipe)[-1]
    assert (named["rank"], named["host"]) == (1, attempt["hosts"][1])
    assert named["busy_s"] > 1.5 * named["others_s"]
    assert any("rank 1 on" in line and "slower than the rest" in line for line in output)
    lines = [line for line in read_json_lines(run_folder_of(recipe) / "metrics.jsonl") if line["time"] > slowed_at]
    ratios = [line["slowest_rank_ratio"] for line in lines if line["slowest_rank"] == 1]
    assert max(ratios) > 1.5
    assert f"warning in attempt {attempt['attempt']}: rank 1 on" in _status(recipe)


def assert_the_time_is_accounted_for(recipe: Recipe) -> None:
    told = json.loads(_status(recipe, "--json"))
    seconds, (first, second) = told["seconds"], attempts(recipe)
    command, ended = events(recipe, "command")[0], events(recipe, "command_ended")[0]
    wall_s = ended["time"] - command["started"]
    assert told["wall_s"] == pytest.approx(wall_s)
    assert sum(seconds.values()) == pytest.approx(wall_s)
    assert sum(told["worker_seconds"].values()) == pytest.approx(2 * wall_s)
    absent = {kind for kind, spent_s in seconds.items() if spent_s == 0.0}
    assert absent <= {"queue", "data_wait"}

    fault = events(recipe, "fault")[0]
    stopped, left = events(recipe, "stopped")[0], events(recipe, "left")[0]
    first_steps = {event["attempt"]: event for event in events(recipe, "first_step")}
    restored = events(recipe, "resumed")[0]
    assert restored["step"] in (20, 30)  # the save at 30 has waited for that of 20, and may be on its way itself
    assert seconds["restore"] == pytest.approx(restored["seconds"], abs=1e-5)
    down_s = second["time"] - fault["time"] + ended["time"] - left["time"]
    assert seconds["down"] == pytest.approx(down_s, abs=1e-5)
    assert left["time"] <= stopped["time"]
    training = {a: event["time"] - event["seconds"] for a, event in first_steps.items()}
    start_s = training[1] - command["started"] + training[2] - second["time"] - restored["seconds"]
    assert seconds["start"] == pytest.approx(start_s, abs=1e-5)
    resumed = (first["attempt"], restored["step"])
    saved = next(e for e in events(recipe, "checkpoint") if (e["attempt"], e["step"]) == resumed)
    lost_s = fault["time"] - saved["saved_at"] - saved["wait_s"] - saved["copy_s"]
    assert seconds["lost"] == pytest.approx(lost_s, abs=1e-5)

    metrics = read_json_lines(run_folder_of(recipe) / "metrics.jsonl")
    live = metrics[-1]["wall_s"]
    assert sum(live.values()) == pytest.approx(metrics[-1]["time"] - command["started"], rel=0.005)
    for kind in ("start", "restore", "lost", "validation"):
        assert live[kind] == pytest.approx(seconds[kind], rel=0.1, abs=0.5), kind
    assert told["goodput"] == pytest.approx(seconds["step"] / wall_s)


def assert_the_restart_and_the_last_line_tell_where_and_why(recipe: Recipe, output: list[str]) -> None:
    told = json.loads(_status(recipe, "--json"))
    restart = told["restarts"][0]
    resumed_step = events(recipe, "resumed")[0]["step"]
    assert (restart["attempt"], restart["step"], restart["resumed_step"]) == (2, 37, resumed_step)
    assert restart["fault"] == "WorkerDied on rank 1"
    first_step = next(event for event in events(recipe, "first_step") if event["attempt"] == 2)
    assert restart["total_s"] == pytest.approx(first_step["time"] - events(recipe, "fault")[0]["time"])
    assert restart["replay_s"] > 0
    assert output[-1] == _status(recipe).splitlines()[-1] == told["verdict"]["line"]
    assert output[-1].startswith("stopped by a signal after step ")
