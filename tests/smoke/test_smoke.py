"""Each kind of trouble once, as a user meets it. The whole suites have them in every phase and mixture."""

import os
import signal
from pathlib import Path

import pytest

from configs.recipe import Recipe
from tests.support.ray_cluster import RayCluster
from tests.support.slurm.rig import CONTROLLER, Rig
from tests.support.slurm.submitted_run import SubmittedRun
from tests.support.syscalls import kill_at_system_call
from tests.support.training.commands import attempts, left_behind, start, steps_done, wait_for
from tests.support.training.runs import (
    GPT,
    digests,
    events,
    history,
    recipe_of,
    samples,
    train_in_processes,
    write_text_shards,
)
from tests.support.training.small_commits import NEW, OLD, check_whole, commit, start_over

STEPS = 200
# A busy machine may keep a process waiting for longer than the default; no process hangs here.
PATIENT = {"hang_timeout_s": 120.0}


def run_of(folder: Path, name: str, steps: int, count: int | str) -> Recipe:
    sections = {
        "run": {"name": name, "dir": str(folder / "runs"), "steps": steps},
        "checkpoint": {"every_steps": 20, "keep_last": 2},
        "validation": None,
        "schedule": {"kind": "constant"},
        "workers": {"count": count, **PATIENT},
    }
    return recipe_of(folder, GPT, name, **sections)


def test_a_run_whose_worker_was_killed_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    write_text_shards(tmp_path, documents=400)
    calm, rough = (run_of(tmp_path, name, STEPS, 2) for name in ("calm", "rough"))
    process = start(rough, tmp_path)
    wait_for(lambda: steps_done(rough) >= 30, process)
    os.kill(attempts(rough)[0]["pids"][1], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert [fault["kind"] for fault in events(rough, "fault") if fault["rank"] == 1] == ["WorkerDied"]
    assert len(attempts(rough)) == 2
    assert left_behind(tmp_path) == []
    train_in_processes(tmp_path / "store", 2, [(calm, None)])
    assert history(rough) == history(calm)
    assert digests(rough, STEPS) == digests(calm, STEPS)
    assert samples(rough) == samples(calm)


def test_a_run_grows_by_a_node_that_comes_and_trains_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_shards(tmp_path, documents=400)
    elastic, calm = run_of(tmp_path, "elastic", 100_000, "1..2"), run_of(tmp_path, "calm", 60, 2)
    with RayCluster(tmp_path) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        process = start(elastic, tmp_path, "--address", cluster.address)
        wait_for(lambda: steps_done(elastic) >= 10, process)
        cluster.add_node()
        wait_for(lambda: [attempt["workers"] for attempt in attempts(elastic)] == [1, 2], process)
        grown = events(elastic, "resized")[0]["step"]
        wait_for(lambda: steps_done(elastic) >= max(grown + 10, calm.run.steps), process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    assert process.returncode == 75, output
    assert grown % 20 == 0  # at a checkpoint, so that no step is done twice
    assert events(elastic, "fault") == []
    train_in_processes(tmp_path / "store", 2, [(calm, None)])
    assert {step: keys for step, keys in samples(elastic).items() if step <= calm.run.steps} == samples(calm)
    losses = [[line["loss"] for line in history(run)[: calm.run.steps]] for run in (elastic, calm)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # one worker rounds otherwise than two


def test_killed_at_every_system_call_of_a_commit_a_whole_checkpoint_remains(tmp_path: Path) -> None:
    start_over(tmp_path)
    calls = kill_at_system_call(lambda: commit(tmp_path, NEW), None)
    assert check_whole(tmp_path) == NEW
    assert calls > 60  # files, receipts, manifest, renames, syncs
    found = []
    for number in range(1, calls + 1):
        start_over(tmp_path)
        kill_at_system_call(lambda: commit(tmp_path, NEW), number)
        found.append(check_whole(tmp_path))
    # Threads interleave differently each time: around the rename a call's number does not tell its place.
    assert found[0] == OLD
    assert set(found) == {OLD, NEW}


def test_a_submitted_job_that_is_warned_saves_requeues_and_goes_on_at_the_next_step(rig: Rig) -> None:
    run = SubmittedRun(rig, "smoke", steps=100_000, workers={"count": 2, **PATIENT})
    run.submit("--nodes", "2")
    run.wait_training()
    rig.inside(CONTROLLER, "scancel", "--batch", "--signal=USR2", run.job)
    run.wait_for(lambda: bool(run.events("requeued")), "the requeue")
    saved = run.checkpoints()[-1]  # now: the next start may write another before it is looked at
    assert [event["signal"] for event in run.events("warned")] == ["SIGUSR2"]
    assert run.events("stopped")[0]["step"] == saved
    run.wait_training(starts=2)
    assert run.resumed_steps() == [saved]
    run.stoker("cancel")
    assert run.wait_over()["ExitCode"] == "75:0", run.output()
    assert len(run.events("job_started")) == 2
    assert not run.events("fault")
