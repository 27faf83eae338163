"""Starts a host's health check in a process of its own, since it imports torch and may hang in a broken device."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.hosts.health_report import CheckPlan, HostReport

__all__ = ["TIMEOUT_S", "HostCheck"]


TIMEOUT_S = 240.0  # of a whole check; the parts of trainer/host_health have shorter ones
_REPORT_POLL_S = 0.1


class HostCheck:
    """A check that runs; `report` is None until it has ended, one way or the other."""

    def __init__(self, plan: CheckPlan, environment: Mapping[str, str], log: Path) -> None:
        """Starts it. `log` gets what it writes to its standard error."""
        self._host, self._log = plan.host, log
        self._deadline = time.monotonic() + TIMEOUT_S
        command = [sys.executable, "-m", "trainer.host_health.measure_host", plan.encode()]
        self._process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log.open("wb")
        )

    def report(self) -> HostReport | None:
        """What it found; a problem of the host where it broke off, or has run for TIMEOUT_S and is killed."""
        if self._process.poll() is None and time.monotonic() < self._deadline:
            return None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            return self._failed(f"its health check did not end in {TIMEOUT_S:.0f} s")
        assert self._process.stdout is not None
        text = self._process.stdout.read()  # one line, which a pipe holds
        try:
            return HostReport.from_dict(json.loads(text.splitlines()[-1]))
        except (IndexError, json.JSONDecodeError):
            status = self._process.returncode
            how = signal.Signals(-status).name if status < 0 else f"exit {status}"
            return self._failed(f"its health check broke off ({how}): {self._last_words()}")

    def wait(self) -> HostReport:
        """The report, within TIMEOUT_S."""
        while (report := self.report()) is None:
            time.sleep(_REPORT_POLL_S)
        return report

    def _failed(self, problem: str) -> HostReport:
        return HostReport(self._host, problems=[problem])

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
