"""A run as a user submits it on the rig, and what can be seen of it from outside."""

import re
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

from cluster.run.ledger import read_json_lines
from configs.load import dump_recipe
from tests.support.slurm.rig import CONTROLLER, Rig, wait_until
from tests.support.training.runs import GPT, recipe_of, write_text_shards

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


class SubmittedRun:
    """`steps` and the sections of its recipe, `folder` where the user stands; `submit` queues it."""

    def __init__(self, rig: Rig, name: str, steps: int, folder: str | None = None, **sections: Any) -> None:
        self.rig, self.home = rig, rig.folder / "jobs" / (folder or name)
        write_text_shards(self.home, documents=400)
        run = {"name": name, "dir": str(self.home / "runs"), "steps": steps}
        usual = {"checkpoint": {"every_steps": 20}, "validation": None}
        # The full check has a test of its own, and takes the processors that all hosts here share.
        sections["slurm"] = {"health_check": "quick", **sections.get("slurm", {})}
        model = sections.pop("model", GPT)
        self.recipe = recipe_of(self.home, model, name, **{"run": run, **usual, **sections})
        (self.home / "recipe.yaml").write_text(dump_recipe(self.recipe))
        self.folder = Path(run["dir"]) / name
        self.job = ""

    def submit(self, *arguments: str) -> str:
        """The job's id."""
        done = self.rig.stoker("submit", "recipe.yaml", *arguments, folder=self.home)
        found = re.search(r"submitted job (\d+)", done.stdout + done.stderr)
        assert found, done.stdout + done.stderr
        self.job = found[1]
        return self.job

    def task(self, number: int) -> "SubmittedRun":
        """The run of one task of an array."""
        run = copy(self)
        run.folder, run.job = self.folder.with_name(f"{self.folder.name}-{number}"), f"{self.job}_{number}"
        return run

    def stoker(self, command: str, *options: str) -> str:
        done = self.rig.stoker(command, self.folder, *options, folder=self.home)
        return done.stdout + done.stderr

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_json_lines(self.folder / "ledger.jsonl") if event["event"] == kind]

    def output(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "slurm").glob("job-*.out")))

    def show(self) -> dict[str, str]:
        """What scontrol says of the job."""
        out = self.rig.inside(CONTROLLER, "scontrol", "--oneliner", "show", "job", self.job).stdout
        return dict(word.split("=", 1) for word in out.split() if "=" in word)

    def elapsed_s(self) -> int:
        """Since the newest start of the job."""
        hours, minutes, seconds = self.show()["RunTime"].rpartition("-")[2].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + int(seconds)

    def checkpoints(self) -> list[int]:
        """The steps of those that are published: one that was killed right after may not be in the ledger."""
        return sorted(int(path.name.removeprefix("step-")) for path in (self.folder / "checkpoints").glob("step-*"))

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 1200.0) -> None:
        """Fails at once when the job is over, with what it said."""

        def happened() -> bool:
            over = self.show()["JobState"] in OVER
            assert condition() or not over, f"{what}: the job is over\n{self.output()}"
            return condition()

        wait_until(happened, what, timeout_s)

    def wait_training(self, starts: int = 1, attempts: int = 1, workers: int = 2) -> None:
        """Until the run's attempt number `attempts` or a later one does steps, in the job's start number `starts`."""

        def trains() -> bool:
            kinds = [event["event"] for event in read_json_lines(self.folder / "ledger.jsonl")]
            begun, steps = self.events("attempt_started"), self.events("first_step")
            return (
                kinds.count("job_started") == starts
                and "first_step" in kinds[len(kinds) - kinds[::-1].index("job_started") :]
                and steps[-1]["attempt"] == begun[-1]["attempt"] >= attempts
                and begun[-1]["workers"] == workers
            )

        self.wait_for(trains, f"start {starts}, attempt {attempts} trains with {workers} workers")

    def wait_over(self) -> dict[str, str]:
        """Of scontrol."""
        wait_until(lambda: self.show()["JobState"] in OVER, f"the end of job {self.job}: {self.output()}")
        return self.show()

    def resumed_steps(self) -> list[int]:
        return [event["step"] for event in self.events("resumed")]
