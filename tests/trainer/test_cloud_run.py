"""A run as a job of a Ray cluster of several hosts that Stoker did not start: code shipped, hosts lost and gained."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from cluster.cloud_shape import ray_environment
from configs.cloud import Cloud
from configs.load import dump_recipe
from configs.recipe import Recipe
from tests.hosts import CAN_MAKE_HOSTS, Hosts
from tests.trainer.commands import STOKER, attempts, start, steps_done, train, wait_for
from tests.trainer.runs import GPT, events, history, recipe_of, write_text_shards
from tests.trainer.test_elastic_run import samples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="hosts are network namespaces, which need root and iproute2"),
]
ROOT = Path(__file__).parents[2]
CODE = ("configs", "data", "cluster", "trainer")
STEPS = 260


@pytest.fixture
def folder() -> Iterator[Path]:
    """Ray's sockets lie below it, and their paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="stoker-test-", dir="/tmp") as name:
        write_text_shards(Path(name), documents=400)
        yield Path(name)


def run_of(folder: Path, name: str, count: int | str) -> Recipe:
    setting = {
        "checkpoint": {"every_steps": 20},
        "validation": None,
        "monitor": {"every_steps": 1, "audit_samples": True},
        "workers": {"count": count, "max_failures": 1},
    }
    return recipe_of(folder, GPT, name, run={"name": name, "dir": str(folder / "runs"), "steps": STEPS}, **setting)


def submit(hosts: Hosts, recipe: Recipe, folder: Path) -> subprocess.Popen[str]:
    """`ray job submit` with the code of this checkout, which the hosts are not meant to have."""
    code = folder / "code"
    if not code.exists():
        for package in CODE:
            shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / f"{recipe.run.name}.yaml"
    path.write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "trainer", "train", str(path), "--address", "auto"]
    ray = [str(STOKER.with_name("ray")), "job", "submit", "--address", hosts.jobs, "--submission-id", recipe.run.name]
    return subprocess.Popen(
        hosts.inside(0, *ray, "--working-dir", str(code), "--", *command),
        env=os.environ | hosts.environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ray_job(hosts: Hosts, order: str, name: str) -> str:
    command = hosts.inside(0, str(STOKER.with_name("ray")), "job", order, "--address", hosts.jobs, name)
    done = subprocess.run(command, env=os.environ | hosts.environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def imported_from(pid: int) -> str:
    return psutil.Process(pid).environ()["PYTHONPATH"].split(os.pathsep)[0]


def test_a_submitted_job_loses_a_host_gains_one_leaves_one_and_ends_with_the_same_batches(folder: Path) -> None:
    job, calm = run_of(folder, "job", "1..2"), run_of(folder, "calm", 2)
    settings = ray_environment(job, Cloud(image="none"))
    with Hosts(folder, 3, started=2, settings=settings, jobs=True) as hosts:
        process = submit(hosts, job, folder)
        wait_for(lambda: steps_done(job) >= 30, process)
        assert "working_dir_files" in imported_from(attempts(job)[0]["pids"][0])
        lost = int(attempts(job)[0]["host"].removeprefix("host"))
        hosts.lose(lost)
        wait_for(lambda: [a["workers"] for a in attempts(job)] == [2, 1], process)
        hosts.start_ray(3)
        wait_for(lambda: [a["workers"] for a in attempts(job)] == [2, 1, 2], process)
        again = steps_done(job)
        wait_for(lambda: steps_done(job) >= again + 20, process)
        drain = hosts.inside(3, str(STOKER), "drain", "--grace-s", "60", "--address", hosts.address)
        drained = subprocess.run(drain, env=os.environ | hosts.environment, capture_output=True, text=True, timeout=120)
        assert (drained.returncode, drained.stdout.splitlines()[-1:]) == (0, ["the node has left the cluster"]), drained
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "succeeded" in output
    assert [a["workers"] for a in attempts(job)] == [2, 1, 2, 1]
    assert len(events(job, "preempted")) == 1
    code, output = train(calm, folder)
    assert code == 0, output
    assert samples(job) == samples(calm)
    losses = [[line["loss"] for line in history(run)[:100]] for run in (job, calm)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # one worker rounds otherwise than two


def test_a_stopped_job_leaves_a_checkpoint_and_a_new_one_goes_on(folder: Path) -> None:
    job = run_of(folder, "job", 1)
    settings = ray_environment(job, Cloud(image="none"))
    with Hosts(folder, 1, settings=settings, jobs=True) as hosts:
        process = submit(hosts, job, folder)
        wait_for(lambda: steps_done(job) >= 5, process)
        ray_job(hosts, "stop", "job")
        process.communicate(timeout=120)
        left = events(job, "stopped")
        assert len(left) == 1
        assert "was stopped" in ray_job(hosts, "status", "job")
        ray_job(hosts, "delete", "job")
        process = submit(hosts, job, folder)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert events(job, "fault") == []
    assert [event["step"] for event in events(job, "resumed")] == [left[0]["step"]]


def test_a_run_folder_that_a_host_does_not_share_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run_of(folder, "job", 1)
    (folder / "runs").mkdir()
    with Hosts(folder, 1, started=0) as hosts:
        hosts.start_ray(1, hidden=folder / "runs")
        for name, value in hosts.environment.items():
            monkeypatch.setenv(name, value)
        process = start(job, folder, "--address", hosts.address, place=partial(hosts.inside, 0))
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 2, output
    assert f"run folder {folder / 'runs' / 'job'} on host host1 is another one than that of `stoker train`" in output
    assert "Traceback" not in output
