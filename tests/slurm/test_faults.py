"""Hosts and Ray's own processes that die under a job on a real Slurm."""

from tests.slurm.jobs import SubmittedRun
from tests.slurm.rig import Rig


def test_an_elastic_run_outlives_a_raylet_and_a_host_and_its_job_the_loss_of_the_head(rig: Rig) -> None:
    slurm = {"on_node_loss": "continue"}
    run = SubmittedRun(rig, "tough", steps=100_000, workers={"count": "1..2"}, slurm=slurm)
    run.submit("--nodes", "2", "--time", "60")
    run.wait_training()
    rig.kill("n2", "raylet/raylet")
    run.wait_training(attempts=2)
    rig.power_off("n2")
    run.wait_for(lambda: bool(run.events("host_lost")), "n2 is missed")
    run.wait_training(attempts=3, workers=1)
    rig.kill("n1", "gcs/gcs_server")
    run.wait_for(lambda: bool(run.events("requeued")), "the requeue")
    assert "Ray's head on n1 is gone: this attempt is over" in run.output()
    run.wait_training(starts=2)
    saved = run.events("checkpoint")[-1]["step"]
    assert run.resumed_steps()[-1] == saved
    run.stoker("cancel")
    assert run.wait_over()["ExitCode"] == "75:0", run.output()
    rig.power_on("n2")
