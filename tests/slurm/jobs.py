"""A run as a user submits it on the rig, and what can be seen of it from outside."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.ledger import read_json_lines
from configs.load import dump_recipe
from tests.slurm.rig import CONTROLLER, Rig, wait_until
from tests.trainer.runs import GPT, recipe_of, write_text_shards

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


class SubmittedRun:
    """`steps` and the sections of its recipe; `submit` queues it."""

    def __init__(self, rig: Rig, name: str, steps: int, **sections: Any) -> None:
        self.rig, self.home = rig, rig.folder / "jobs" / name
        write_text_shards(self.home, documents=400)
        run = {"name": name, "dir": str(self.home / "runs"), "steps": steps}
        usual = {"checkpoint": {"every_steps": 20}, "validation": None}
        self.recipe = recipe_of(self.home, GPT, name, **{"run": run, **usual, **sections})
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

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
        def happened() -> bool:
            assert condition() or self.show()["JobState"] not in OVER, f"{what}: the job is over\n{self.output()}"
            return condition()

        try:
            wait_until(happened, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from error

    def wait_steps(self, more_than: int = 0) -> None:
        """Until some steps of the newest start are done."""

        def done() -> bool:
            lines = read_json_lines(self.folder / "metrics.jsonl")
            starts = len(self.events("job_started"))
            return bool(lines) and lines[-1]["step"] > more_than and len(self.events("command")) == starts

        self.wait_for(done, f"steps beyond {more_than}")

    def wait_starts(self, count: int) -> None:
        self.wait_for(lambda: len(self.events("job_started")) >= count, f"start {count}")

    def wait_over(self) -> dict[str, str]:
        """Of scontrol."""
        wait_until(lambda: self.show()["JobState"] in OVER, f"the end of job {self.job}: {self.output()}", 300)
        return self.show()

    def resumed_steps(self) -> list[int]:
        return [event["step"] for event in self.events("resumed")]
