"""Runs on a real Slurm, as a user submits them: `make test-slurm`."""

from tests.slurm.jobs import SubmittedRun
from tests.slurm.rig import Rig


def test_two_jobs_on_the_same_hosts_train_to_the_end_and_do_not_see_each_other(rig: Rig) -> None:
    long = SubmittedRun(rig, "long", steps=3000)
    short = SubmittedRun(rig, "short", steps=40)
    long.submit("--nodes", "2", "--", "--nodelist=n1,n2")
    short.submit("--nodes", "2", "--", "--nodelist=n1,n2")
    short.wait_steps()
    long.wait_steps()
    tokens = [(run.folder / "slurm" / f"token-{run.job}") for run in (long, short)]
    assert [oct(path.stat().st_mode & 0o777) for path in tokens if path.exists()] != []
    assert {path.stat().st_mode & 0o777 for path in tokens if path.exists()} == {0o600}
    secrets = [path.read_text() for path in tokens if path.exists()]
    seen = "\n".join(line for host in rig.hosts for line in rig.processes(host))
    assert "stoker-agents" in seen
    assert not any(secret in seen + long.output() + short.output() for secret in secrets)
    ended = short.wait_over()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), short.output()
    assert long.show()["JobState"] == "RUNNING"
    ended = long.wait_over()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), long.output()
    for run in (long, short):
        assert run.events("finished")
        assert len(run.events("attempt_started")) == 1  # the end of the one did not disturb the other
        assert not run.events("fault")
        assert "COMPLETED" in run.stoker("status")
        assert not list((run.folder / "slurm").glob("token-*"))
    assert "finished: step 40" in short.stoker("logs")
