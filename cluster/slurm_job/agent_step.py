"""The step of agents as the supervisor sees it: which hosts are there, and what went wrong."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.hosts.health_report import HostReport

END_TIMEOUT_S = 3.5
SILENCE_S = 30.0  # an agent reports every BEAT_S of host_agent.py, but a busy host is late


class HostAgents:
    """Starts the step; ends it by closing its standard input, which srun passes on."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        # The supervisor waits for signals, and must not be held up by a step that says nothing.
        os.set_blocking(self._process.stdout.fileno(), False)
        self._received = b""
        self.alive: frozenset[str] = frozenset()  # hosts whose Ray is up, as Ray's GCS has it
        self.failed: dict[str, dict[str, Any]] = {}  # by host, those that gave up: host, message, code, unfit
        self.reports: dict[str, HostReport] = {}  # by host
        self._heard: dict[str, float] = {}  # by host

    def poll(self) -> None:
        """Take in what the agents have sent since the last call."""
        assert self._process.stdout is not None
        while block := self._process.stdout.read(1 << 16):
            self._received += block
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            with suppress(json.JSONDecodeError):  # Slurm's own words
                self._take(json.loads(line))

    def _take(self, message: Any) -> None:
        match message:
            case {"here": host}:
                self._heard[host] = time.monotonic()
            case {"alive": hosts}:
                self.alive = frozenset(hosts)
            case {"failed": failure}:
                self.failed.setdefault(failure["host"], failure)
            case {"checked": report}:
                self.reports[report["host"]] = HostReport.from_dict(report)

    def silent(self) -> list[str]:
        """Hosts whose agent was heard once, but not for SILENCE_S: it was killed, or its host is cut off."""
        return [host for host, heard in self._heard.items() if time.monotonic() - heard > SILENCE_S]

    def leave_out(self, host: str) -> None:
        """The agent there ends, and all that it started."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{host}\n".encode())
            self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        """Whether the whole step has: it outlives single agents."""
        return self._process.poll() is not None

    @property
    def status(self) -> int | None:
        """Exit status of srun, once `ended`."""
        return self._process.returncode

    def end(self) -> None:
        """All agents, and all that they started; a host that is cut off does it by itself."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
