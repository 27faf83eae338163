"""docs/slurm.md: its commands, as they stand there."""

import re
import shlex

from configs.checkout import CHECKOUT
from tests.support.slurm.rig import Rig, wait_until
from tests.support.slurm.submitted_run import SubmittedRun


def documented_commands() -> list[list[str]]:
    text = (CHECKOUT / "docs/slurm.md").read_text()
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("stoker ")]


def test_the_commands_of_the_documentation_work(rig: Rig) -> None:
    run = SubmittedRun(rig, "tiny", steps=100_000)
    submit, dry, other, status, logs, doctor, cancel, *scripts = documented_commands()

    def stoker(command: list[str]) -> str:
        done = rig.stoker(*command, folder=run.home)
        return done.stdout + done.stderr

    assert stoker(dry).startswith("#!/bin/bash\n# Rendered by")
    for command in scripts:  # of campaigns and containers
        assert "#SBATCH --job-name=" in stoker(command if "--dry-run" in command else [*command, "--dry-run"])
    assert not run.folder.exists()
    first = re.search(r"submitted job (\d+)", stoker(submit))
    again = rig.stoker(*submit, folder=run.home, check=False)
    assert (again.returncode, "has job" in again.stderr) == (2, True), again.stderr
    assert first
    run.job = first[1]
    assert "submitted job" in stoker(other)
    run.wait_for(lambda: bool(run.events("job_started")), "the start")
    assert f"slurm: job {run.job} RUNNING" in stoker(status)
    stoker(cancel)
    assert f"job {run.job}, start 1, on n" in stoker(logs)  # ends with the job
    assert len(run.events("job_ended")) == 1
    stoker(["cancel", "runs/tiny-7", "--now"])
    wait_until(lambda: "CANCELLED" in stoker(["status", "runs/tiny-7"]), "the other job is over")
    assert "all-reduce of all hosts" in stoker(doctor)
