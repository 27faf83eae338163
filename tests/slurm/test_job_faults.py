"""Hosts and Ray's own processes that die under a job on a real Slurm."""

import sys

from configs.checkout import CHECKOUT
from tests.support.slurm.rig import CONTROLLER, Rig
from tests.support.slurm.submitted_run import SubmittedRun


def test_an_elastic_run_outlives_a_raylet_and_a_host_and_its_job_the_loss_of_the_head(rig: Rig) -> None:
    slurm = {"on_node_loss": "continue"}
    run = SubmittedRun(rig, "tough", steps=100_000, workers={"count": "1..2"}, slurm=slurm)
    run.submit("--nodes", "2", "--time", "60")
    run.wait_training()
    run.wait_for(lambda: bool(run.events("checkpoint")), "a checkpoint")
    rig.kill("n2", "raylet/raylet")
    run.wait_training(attempts=2)
    rig.power_off("n2")
    run.wait_for(lambda: bool(run.events("host_lost")), "n2 is missed")
    run.wait_training(attempts=3, workers=1)
    rig.kill("n1", "gcs/gcs_server")
    run.wait_for(lambda: bool(run.events("requeued")), "the requeue")
    saved = run.checkpoints()[-1]  # now: the next start may write another before it is looked at
    assert "Ray's head on n1 is gone: this attempt is over" in run.output()
    run.wait_training(starts=2)
    assert run.resumed_steps()[-1] == saved
    rig.inside(CONTROLLER, "scontrol", "requeue", run.job)  # SIGTERM to all, and a few seconds
    run.wait_for(lambda: len(run.events("job_started")) == 3, "start 3")
    assert run.events("checkpoint")[-1]["step"] > saved
    assert run.events("requeued")[-1]["reason"].startswith("by Slurm or an operator")
    rig.inside(CONTROLLER, "scancel", run.job)
    assert run.wait_over()["JobState"] == "CANCELLED", run.output()
    assert len(run.events("requeued")) == 2
    rig.power_on("n2")


def test_a_host_that_fails_its_health_check_is_named_and_left_out(rig: Rig) -> None:
    run = SubmittedRun(rig, "healthy", steps=100_000)
    rig.inside("n2", "mount", "-o", "remount,size=50m", "/dev/shm")
    run.submit("--nodes", "2")
    doctor = rig.inside(
        "n2", sys.executable, "-m", "trainer", "doctor", run.home, PYTHONPATH=str(CHECKOUT), check=False
    )
    assert (doctor.returncode, "unfit: /dev/shm has 50 MiB free" in doctor.stderr) == (1, True), doctor.stderr
    run.wait_for(lambda: len(run.events("job_started")) == 2, "start 2")
    assert "n2: /dev/shm has 50 MiB free, Ray needs 128" in run.output()
    assert [event["excluded"] for event in run.events("requeued")] == [["n2"]]
    assert run.events("job_started")[-1]["hosts"] == ["n1", "n3"]
    rig.inside(CONTROLLER, "scancel", run.job)
    run.wait_over()
    rig.inside("n2", "mount", "-o", "remount,size=2g", "/dev/shm")


def test_a_job_whose_first_host_loses_power_is_requeued_by_those_that_are_left(rig: Rig) -> None:
    run = SubmittedRun(rig, "orphan", steps=100_000)
    run.submit("--nodes", "2")
    run.wait_for(lambda: bool(run.events("checkpoint")), "a checkpoint")
    rig.power_off("n1")
    run.wait_training(starts=2)
    assert run.resumed_steps()[0] >= 20
    assert [event["host"] for event in run.events("host_lost")] == ["n1"]
    assert "n1" not in run.events("job_started")[-1]["hosts"]
    run.stoker("cancel")
    assert run.wait_over()["ExitCode"] == "75:0", run.output()
    rig.power_on("n1")
