"""The test suites, one after another, and what became of them: `python -m tests.suites smoke`, or several, or `all`.

A test that fails is run once more, alone: if it passes then, it is told as unsteady, else the suite has failed. The
summary stands at the end of the output and in build/test-summary.md.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.checkout import CHECKOUT

BUILD = CHECKOUT / "build"
_MOST_AGAIN = 5  # more failures than this are no bad luck
_NO_TESTS = 5  # pytest's exit code
_ONE_BY_ONE = ("-n", "2", "--dist", "load", "--maxschedchunk", "1")  # the longest are first
# Limits that bound a hang.
SUITES = {
    "test": ("-m", "not slow and not slurm and not smoke", "-n", "2", "--dist", "worksteal", "--timeout", "600"),
    "smoke": ("-m", "smoke", *_ONE_BY_ONE, "--timeout", "1200", "tests/smoke"),
    "slow": ("-m", "slow", *_ONE_BY_ONE, "--timeout", "1800", "--durations", "30"),
    "slurm": ("-m", "slurm", *_ONE_BY_ONE, "--timeout", "1800", "--durations", "10", "tests/slurm"),
}


@dataclass
class Result:
    """Of one suite. `unsteady` failed once and passed alone; `failed` failed alone too, or was not run again."""

    name: str
    passed: int = 0
    skipped: int = 0
    unsteady: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    load: str = ""

    @property
    def ok(self) -> bool:
        return not self.failed

    def row(self) -> str:
        counts = (self.passed, len(self.failed), len(self.unsteady), self.skipped)
        return f"| {self.name} | {' | '.join(map(str, counts))} | {self.seconds:.0f} | {self.load} |"


def run(name: str) -> Result:
    """Run one suite."""
    begun, load = time.monotonic(), _load()
    code, outcomes = _pytest(name, *SUITES[name])
    failed = [test for test, outcome in outcomes.items() if outcome == "failed"]
    if code not in (0, 1, _NO_TESTS) or (code == 1 and not failed):
        failed.append(f"pytest itself: exit code {code}")
    unsteady = []
    if len(failed) <= _MOST_AGAIN:
        unsteady = [test for test in failed if _passes_alone(name, test)]
    return Result(
        name,
        passed=sum(outcome == "passed" for outcome in outcomes.values()) + len(unsteady),
        skipped=sum(outcome == "skipped" for outcome in outcomes.values()),
        unsteady=unsteady,
        failed=[test for test in failed if test not in unsteady],
        seconds=time.monotonic() - begun,
        load=f"{load} → {_load()}",
    )


def _passes_alone(name: str, test: str) -> bool:
    if "::" not in test:
        return False
    print(f"\nonce more, alone: {test}", flush=True)
    code, outcomes = _pytest(f"{name}-again", "--timeout", "1800", test)
    return code == 0 and set(outcomes.values()) == {"passed"}


def _pytest(name: str, *options: str) -> tuple[int, dict[str, str]]:
    """Its exit code, and the outcome of each test."""
    BUILD.mkdir(exist_ok=True)
    record = BUILD / f"tests-{name}.jsonl"
    record.write_text("")
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-rs", "-p", "tests.suites", *options]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**outside, "OMP_NUM_THREADS": "1", _RECORD: str(record)}
    code = subprocess.run(command, cwd=CHECKOUT, env=environment, check=False).returncode
    outcomes: dict[str, str] = {}
    for line in map(json.loads, record.read_text().splitlines()):
        worst = max(line["outcome"], outcomes.get(line["test"], "passed"), key=_ORDER.index)
        outcomes[line["test"]] = worst  # of set-up, test and tear-down
    return code, outcomes


_RECORD = "STOKER_TEST_RECORD"
_ORDER = ["passed", "skipped", "failed"]


def pytest_runtest_logreport(report: Any) -> None:
    """pytest's hook: this module is its plugin too. With xdist only the controller's word counts."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(os.environ[_RECORD]).open("a") as file:
            file.write(json.dumps({"test": report.nodeid, "outcome": report.outcome}) + "\n")


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def summary(results: list[Result]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| suite | passed | failed | unsteady | skipped | seconds | load |"
    yield "|---|---|---|---|---|---|---|"
    yield from (result.row() for result in results)
    for result in results:
        yield from (f"- failed: {test}" for test in result.failed)
        yield from (f"- unsteady (failed once, passed alone): {test}" for test in result.unsteady)


def main(names: list[str]) -> int:
    results = []
    for name in list(SUITES) if names == ["all"] else names:
        results.append(run(name))
        text = "\n".join(summary(results))
        (BUILD / "test-summary.md").write_text(text + "\n")
    print(f"\n{text}", flush=True)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
