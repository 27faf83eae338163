"""Hosts that Slurm takes for good and that are not: slow ones, cut ones."""

import re

from tests.support.slurm.rig import Rig, wait_until
from tests.support.slurm.submitted_run import SubmittedRun


def writers(rig: Rig, host: str) -> list[str]:
    return [line for line in rig.processes(host) if re.search("raylet|ray::|trainer", line)]


def test_a_slow_spare_host_is_left_out_and_a_run_that_may_not_shrink_is_requeued_when_a_host_is_cut(rig: Rig) -> None:
    run = SubmittedRun(rig, "spare", steps=100_000, slurm={"health_check": "full"})
    rig.break_link("n3", "n2")
    doctor = rig.stoker(*("doctor", run.home, "--nodes", "3", "--", "--partition=low"), folder=run.home, check=False)
    assert (doctor.returncode, doctor.stderr.count("unfit")) == (1, 0), doctor.stderr
    assert re.search("no all-reduce between n(2 and n3|3 and n2):", doctor.stderr), doctor.stderr
    rig.mend_link("n3", "n2")
    rig.slow_down("n2", "40mbit")
    doctor = rig.stoker(*("doctor", run.home, "--nodes", "3", "--", "--partition=low"), folder=run.home, check=False)
    assert "stoker: unfit: n2: an all-reduce sends" in doctor.stderr, doctor.stdout + doctor.stderr
    assert (doctor.returncode, doctor.stderr.count("unfit")) == (1, 1), doctor.stderr
    assert "n3: matrix product on one cpu core" in doctor.stdout
    run.submit("--nodes", "3")
    run.wait_training()
    assert "host n2 is left out: an all-reduce sends" in run.output(), run.output()
    assert rig.processes("n2") == []
    assert [event["host"] for event in run.events("host_unfit")] == ["n2"]
    assert sorted(run.events("hosts_checked")[0]["hosts"]) == ["n1", "n2", "n3"]
    run.wait_for(lambda: bool(run.events("checkpoint")), "a checkpoint")
    rig.cut("n3")
    wait_until(lambda: not writers(rig, "n3"), "the cut host writes nothing any more")
    run.wait_for(lambda: bool(run.events("requeued")), "the requeue")
    saved = run.checkpoints()[-1]  # now: the next start may have written another before it is looked at
    assert [event["host"] for event in run.events("host_lost")] == ["n3"]
    rig.power_off("n3")  # healed as it is, Slurm would end the old step there, and with it the new one of this job
    rig.power_on("n3")
    rig.speed_up("n2")

    def n2_checks() -> bool:
        return any("trainer.host_health.measure_host" in line for line in rig.processes("n2"))

    wait_until(n2_checks, "the check of the second start")
    rig.kill("n2", "cluster.slurm_job.host_agent")
    run.wait_training(starts=2)
    assert "the agent on n2 is not heard of any more: going on without" in run.output()
    assert run.resumed_steps()[0] == saved >= 20
    run.stoker("cancel")
    assert run.wait_over()["ExitCode"] == "75:0", run.output()
