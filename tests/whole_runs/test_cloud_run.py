"""A run as a job of a Ray cluster of several hosts that Stoker did not start: code shipped, hosts lost and gained."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import psutil
import pytest

from cluster.cloud.cluster_shape import ray_environment
from configs.checkout import CHECKOUT
from configs.load import dump_recipe
from configs.recipe import Recipe
from configs.sections.cloud_section import Cloud
from tests.support.hosts import CAN_MAKE_HOSTS, Hosts
from tests.support.training.commands import STOKER, attempts, start, steps_done, wait_for
from tests.support.training.runs import GPT, events, history, recipe_of, samples, train_in_processes, write_text_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="hosts are network namespaces, which need root and iproute2"),
]
CODE = ("configs", "data", "cluster", "trainer")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Ray's sockets lie below it, and their paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="stoker-test-", dir="/tmp") as name:
        write_text_shards(Path(name), documents=400)
        yield Path(name)


def run_of(folder: Path, name: str, count: int | str, steps: int) -> Recipe:
    setting = {
        "checkpoint": {"every_steps": 20},
        "validation": None,
        "monitor": {"every_steps": 1, "audit_samples": True},
        "workers": {"count": count, "max_failures": 0},
        "schedule": {"kind": "constant"},
    }
    return recipe_of(folder, GPT, name, run={"name": name, "dir": str(folder / "runs"), "steps": steps}, **setting)


def submit(hosts: Hosts, recipe: Recipe, folder: Path) -> subprocess.Popen[str]:
    """`ray job submit` with the code of this checkout, which the hosts are not meant to have."""
    code = folder / "code"
    if not code.exists():
        for package in CODE:
            shutil.copytree(CHECKOUT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
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
    done = subprocess.run(command, env=os.environ | hosts.environment, capture_output=True, text=True, timeout=1200)
    return done.stdout + done.stderr


def imported_from(pid: int) -> str:
    return psutil.Process(pid).environ()["PYTHONPATH"].split(os.pathsep)[0]


class SpotHost:
    """A host with `stoker drain --watch azure`, and Azure's metadata service at its real address: a file per answer."""

    def __init__(self, hosts: Hosts, number: int, folder: Path) -> None:
        self._events = folder / "metadata" / "scheduledevents"
        self._events.parent.mkdir(parents=True)
        self._events.write_text('{"Events": []}')
        hosts.add_address(number, "169.254.169.254")
        serve = ["-m", "http.server", "80", "--bind", "169.254.169.254", "--directory", str(folder)]
        watch = ["drain", "--watch", "azure", "--grace-s", "60", "--address", hosts.address]
        self._server = subprocess.Popen(hosts.inside(number, sys.executable, *serve), stderr=subprocess.DEVNULL)
        self._watch = subprocess.Popen(
            hosts.inside(number, str(STOKER), *watch),
            env=os.environ | hosts.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._server, self._watch):
            process.kill()
            process.wait()

    def take_away(self) -> None:
        assert self._watch.poll() is None
        self._events.write_text('{"DocumentIncarnation": 2, "Events": [{"EventId": "a", "EventType": "Preempt"}]}')

    def drained(self) -> list[str]:
        """The first and the last line of the watch, which has ended well."""
        output, _ = self._watch.communicate(timeout=1200)
        assert self._watch.returncode == 0, output
        lines = output.splitlines()
        return [next(line for line in lines if "takes this host away" in line), lines[-1]]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_submitted_job_loses_a_host_gains_one_leaves_one_is_stopped_and_another_ends_with_the_same_batches(
    folder: Path,
) -> None:
    job = run_of(folder, "job", "1..2", steps=100_000)
    settings = ray_environment(job, Cloud(image="none"))
    with Hosts(folder, 3, started=2, settings=settings, jobs=True) as hosts:
        process = submit(hosts, job, folder)
        wait_for(lambda: steps_done(job) >= 30, process)
        assert "working_dir_files" in imported_from(attempts(job)[0]["pids"][0])
        lost = int(attempts(job)[0]["host"].removeprefix("host"))
        hosts.lose(lost)
        wait_for(lambda: [a["workers"] for a in attempts(job)] == [2, 1], process)
        wait_for(lambda: _lost(job) == [f"host{lost}"], process)
        assert [event["hosts"] for event in events(job, "failure_not_counted")] == [[f"host{lost}"]]
        hosts.start_ray(3)
        wait_for(lambda: [a["workers"] for a in attempts(job)] == [2, 1, 2], process)
        with SpotHost(hosts, 3, folder / "metadata") as spot:
            again = steps_done(job)
            wait_for(lambda: steps_done(job) >= again + 20, process)
            spot.take_away()
            assert spot.drained() == ["azure takes this host away", "the node has left the cluster"]
        wait_for(lambda: [a["workers"] for a in attempts(job)] == [2, 1, 2, 1], process)
        gone_on = steps_done(job)
        wait_for(lambda: steps_done(job) > gone_on, process)
        ray_job(hosts, "stop", "job")
        process.communicate(timeout=1200)
        left = events(job, "stopped")[0]["step"]
        assert "was stopped" in ray_job(hosts, "status", "job")
        ray_job(hosts, "delete", "job")
        last = run_of(folder, "job", "1..2", steps=left + 20)  # with a constant rate it may be shortened
        process = submit(hosts, last, folder)
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output
        assert "succeeded" in output
    assert events(job, "resized")[0]["step"] % 20 == 0  # at a checkpoint: no step is done twice
    assert events(job, "resumed")[-1]["step"] == left
    assert len(events(job, "preempted")) == 1
    assert not [event for event in events(job, "fault") if event["kind"] == "HangError"]
    assert _lost(job) == [f"host{lost}"]  # the one that was taken away had been left before
    _assert_the_same_batches_as_undisturbed(folder, last)


def _lost(job: Recipe) -> list[str]:
    return [event["host"] for event in events(job, "fault") if event["kind"] == "HostLost"]


def _assert_the_same_batches_as_undisturbed(folder: Path, job: Recipe) -> None:
    """Of the first steps all, losses too: one worker rounds otherwise than two, and that grows."""
    calm = run_of(folder, "calm", 2, steps=150)
    train_in_processes(folder / "store", 2, [(calm, None)])
    assert {step: keys for step, keys in samples(job).items() if step <= 150} == samples(calm)
    losses = [[line["loss"] for line in history(run)[:100]] for run in (job, calm)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert [line["step"] for line in history(job)] == list(range(1, job.run.steps + 1))


def test_an_elastic_run_grows_by_the_hosts_that_an_autoscaler_brings_and_they_go_when_it_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run_of(folder, "job", "1..2", steps=100_000)
    with Hosts(folder, 2, started=0, autoscaled=True) as hosts:
        for name, value in hosts.environment.items():
            monkeypatch.setenv(name, value)
        process = start(job, folder, "--address", hosts.address, place=partial(hosts.inside, 0))
        wait_for(lambda: [a["workers"] for a in attempts(job)][-1:] == [2], process)
        grown = steps_done(job)
        wait_for(lambda: steps_done(job) > grown + 5, process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=1200)
        deadline = time.monotonic() + 1200
        while hosts.processes(1) or hosts.processes(2):
            assert time.monotonic() < deadline, "idle hosts are given back"
            time.sleep(0.5)
    assert "stopped" in output, output
    assert events(job, "fault") == []


def test_a_run_says_that_it_waits_for_room_and_names_a_run_folder_that_a_host_does_not_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run_of(folder, "job", 1, steps=100)
    (folder / "runs").mkdir()
    with Hosts(folder, 1, started=0) as hosts:
        for name, value in hosts.environment.items():
            monkeypatch.setenv(name, value)
        process = start(job, folder, "--address", hosts.address, place=partial(hosts.inside, 0))
        assert process.stdout is not None
        waits = "waiting for room: 1 × (1 cpus, 0 gpus) are needed, what is up has room for 0"
        assert any(waits in line for line in process.stdout)
        hosts.start_ray(1, hidden=folder / "runs")
        output, _ = process.communicate(timeout=1200)
    assert process.returncode == 2, output
    assert f"run folder {folder / 'runs' / 'job'} on host host1 is another one than that of `stoker train`" in output
    assert "Traceback" not in output
