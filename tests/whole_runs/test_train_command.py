"""`stoker train` as a user runs it: real Ray, real processes, real faults."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.hosts.resources import available_cpus
from cluster.run.ledger import read_json_lines
from configs.checkout import CHECKOUT
from tests.support.training.commands import STOKER, left_behind, start, steps_done, train, wait_for
from tests.support.training.runs import (
    GPT,
    RESNET,
    digests,
    events,
    history,
    recipe_of,
    run_folder_of,
    spoil_image,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)


@pytest.fixture
def nothing_remains(tmp_path: Path) -> object:
    """After the test no process has the test's folder on its command line or as its working folder."""
    yield
    left = left_behind(tmp_path)
    assert not left, left


@pytest.mark.long
@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.slow
def test_a_run_that_is_killed_interrupted_and_resumed_equals_an_undisturbed_one(tmp_path: Path) -> None:
    write_text_shards(tmp_path, documents=400)
    sections = {"checkpoint": {"every_steps": 25, "keep_last": 2}, "monitor": {"every_steps": 5}, "validation": None}
    run = {"dir": str(tmp_path / "runs"), "steps": 400}
    calm, rough = (recipe_of(tmp_path, GPT, "", run={**run, "name": n}, **sections) for n in ("calm", "rough"))

    process = start(rough, tmp_path)
    wait_for(lambda: steps_done(rough) > 60, process)
    os.kill(int(str(events(rough, "attempt_started")[0]["pid"])), signal.SIGKILL)

    code, output = train(rough, tmp_path)
    assert code == 2, output
    assert "another `stoker train`" in output
    assert f"pid {process.pid}" in output

    wait_for(lambda: len(events(rough, "attempt_started")) > 1 and steps_done(rough) > 100, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 75, output
    assert "SIGINT: saving a checkpoint at the next step boundary" in output

    changed = rough.model_copy(update={"optimizer": rough.optimizer.model_copy(update={"lr": 0.5})})
    code, output = train(changed, tmp_path)
    assert code == 2
    assert "optimizer.lr: 0.01 -> 0.5" in output

    code, output = train(rough, tmp_path)
    assert code == 0, output
    assert f"resumed from the checkpoint of step {events(rough, 'stopped')[0]['step']}" in output
    assert train(rough, tmp_path)[1].endswith("nothing to do\n")

    train_in_processes(tmp_path / "store", 2, [(calm, None)])
    assert history(calm) == history(rough)
    assert digests(calm, 400) == digests(rough, 400)
    assert len(events(rough, "attempt_started")) == 3
    assert len(list((run_folder_of(rough) / "checkpoints").iterdir())) == 2


@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.slow
def test_four_workers_share_two_cpus_and_one_with_a_whole_one_goes_on(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    run = {"name": "shared", "dir": str(tmp_path / "runs"), "steps": 6}
    patient = {"hang_timeout_s": 120.0, "max_failures": 0}
    shared, whole = (
        recipe_of(tmp_path, GPT, "", run=run, validation=None, workers={"count": count, "cpus": cpus, **patient})
        for count, cpus in ((4, available_cpus() / 4), (1, 1))
    )
    code, output = train(shared, tmp_path, "--stop-at", "3")
    assert code == 75, output
    assert f"starting Ray on this host: {available_cpus()} cpus" in output
    code, output = train(whole, tmp_path)
    assert code == 0, output
    assert [attempt["workers"] for attempt in events(shared, "attempt_started")] == [4, 1]
    assert [line["step"] for line in history(shared)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.slow  # tests/trainer/training/test_faults_within.py has the same without Ray
def test_an_image_that_cannot_be_decoded_stops_the_run_by_name_with_the_work_kept(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    spoil_image(tmp_path / "train-000001.tar")
    recipe = recipe_of(tmp_path, RESNET, "torn", run={"name": "torn", "dir": str(tmp_path / "runs"), "steps": 60})
    code, output = train(recipe, tmp_path)
    assert code == 2, output
    assert "train-000001.tar" in output
    assert "Traceback" not in output
    assert len(events(recipe, "attempt_started")) == 1
    kept = int(str(events(recipe, "data_fault")[0]["step"]))
    assert (run_folder_of(recipe) / "checkpoints" / f"step-{kept:08d}" / "manifest.json").exists() or kept == 0


@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.slow
def test_a_small_resnet_reads_handwritten_digits_with_97_percent_accuracy(tmp_path: Path) -> None:
    """The README's commands for the CNN: ZeRO-2, two workers."""
    pack = subprocess.run([STOKER, "data", "pack", "digits", "shards/digits"], cwd=tmp_path, check=False)
    assert pack.returncode == 0
    recipe = CHECKOUT / "configs" / "resnet_digits.yaml"
    run = subprocess.run([STOKER, "train", str(recipe)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    validated = [
        line for line in read_json_lines(tmp_path / "runs/resnet-digits/metrics.jsonl") if "val_accuracy" in line
    ]
    assert validated[-1]["val_accuracy"] >= 0.97
