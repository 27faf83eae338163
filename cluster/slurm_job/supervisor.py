"""The batch script of a job: starts Ray on its hosts and the driver beside it, and brings the run through what happens.

Signals are blocked and asked for: those of Slurm come to every process of a job, and only one of them may decide.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.hosts.network import reaches
from cluster.processes.process_tree import adopt_orphans, end_descendants
from cluster.run.job_events import JobWarned
from cluster.run.ledger import Ledger
from cluster.slurm.job_environment import SlurmJob
from cluster.slurm.requeue_rules import JobEnding
from cluster.slurm.scheduler import Scheduler
from cluster.slurm_job.agent_step import HostAgents
from cluster.slurm_job.job_hosts import JobHosts
from cluster.slurm_job.time_left import TimeLeft
from configs.errors import EXIT_FAILED, EXIT_REQUEUE
from configs.sections.slurm_section import Slurm

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
CANCEL = signal.SIGINT  # `stoker cancel`: as the warning, but for good
SIGNAL_POLL_S = 0.25  # for a signal, between two looks at agents and driver
HEAD_SILENCE_S = 4.0  # longer than host_agent.FENCE_S: by then no host writes for this attempt any more
MARGIN_S = 8.0  # of the time left, to end everything and to requeue
STUCK_S = 2.0  # for the driver to leave when its Ray is broken


@dataclass(frozen=True)
class Start:
    """What the supervisor starts: the steps of agents and of the orphan watch, the driver once all hosts are there."""

    agents: Sequence[str]
    orphan_watch: Sequence[str] | None  # None: the agents do it
    driver: Sequence[str]
    address: str
    environment: dict[str, str]


class Supervisor:
    """One start of a job."""

    def __init__(
        self,
        job: SlurmJob,
        slurm: Slurm,
        hosts: JobHosts,
        scheduler: Scheduler,
        ledger: Ledger,
        say: Callable[[str], None],
    ) -> None:
        self._job, self._slurm, self._hosts = job, slurm, hosts
        self._scheduler, self._ledger, self._say = scheduler, ledger, say
        self._warned: str | None = None
        self._cancelled = False
        self._time_left: TimeLeft | None = None
        self._driver: subprocess.Popen[bytes] | None = None
        self._head_heard = time.monotonic()
        self._watch: HostAgents | None = None

    def run(self, start: Start) -> JobEnding:
        """Returns when everything that it started is gone."""
        adopt_orphans()  # srun and the driver start processes of their own, which must not outlive this start
        agents = HostAgents(start.agents, start.environment)
        self._watch = HostAgents(start.orphan_watch, start.environment) if start.orphan_watch else None
        try:
            return self._wait_for_hosts(agents) or self._train(agents, start)
        finally:  # agents first: they end Ray on their hosts, which this host cannot
            agents.end()
            if self._watch is not None:
                self._watch.end()
            left = end_descendants(timeout_s=3.0)
            if left:
                self._say(f"processes {left} would not end")

    def _wait_for_hosts(self, agents: HostAgents) -> JobEnding | None:
        """None when they are there."""
        deadline = time.monotonic() + self._slurm.start_timeout_s
        ready = False
        while not ready:
            self._tick(agents)
            if self._warned:
                return JobEnding(
                    EXIT_REQUEUE, f"{self._warned} before the run had started", requeue=not self._cancelled
                )
            ready, ending = self._hosts.begin(agents)
            if ending is not None:
                return ending
            if agents.ended:
                why = f"the step of agents ended (exit {agents.status}) at its start"
                return JobEnding(EXIT_FAILED, why, requeue=True)
            if time.monotonic() > deadline:
                missing = self._hosts.not_ready(agents)
                if not missing:  # a host that was left out lingers: Ray treats it as a lost one
                    break
                limit = f"within {self._slurm.start_timeout_s} s (slurm.start_timeout_s)"
                return self._hosts.without(missing, f"{', '.join(missing)} did not join {limit}")
        self._head_heard = time.monotonic()
        self._say(f"Ray is up on {len(self._hosts.names)} hosts: {', '.join(self._hosts.names)}")
        return None

    def _train(self, agents: HostAgents, start: Start) -> JobEnding:
        driver = subprocess.Popen(start.driver, env=start.environment, stdin=subprocess.DEVNULL)
        self._driver = driver
        while driver.poll() is None:
            self._tick(agents)
            if problem := self._broken(agents, start.address):
                return self._give_up(driver, problem)
        return self._verdict(driver.returncode, head_answers=reaches(start.address, timeout_s=1.0))

    def _broken(self, agents: HostAgents, address: str) -> str | None:
        """What makes it pointless to wait for the driver."""
        now = time.monotonic()
        if reaches(address, timeout_s=1.0):
            self._head_heard = now
        if self._job.hosts[0] in agents.failed or agents.ended or now - self._head_heard > HEAD_SILENCE_S:
            return self._head_gone()
        if self._time_left is not None and self._time_left.until(margin_s=MARGIN_S) < now:
            return f"the driver did not leave in the time left after {self._warned}"
        return self._hosts.look(agents, now)

    def _head_gone(self) -> str:
        return f"Ray's head on {self._job.hosts[0]} is gone: this attempt is over"

    def _give_up(self, driver: subprocess.Popen[bytes], problem: str) -> JobEnding:
        if not self._warned:  # else it has had the signal
            driver.send_signal(signal.SIGUSR1)
        try:
            driver.wait(STUCK_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
        return JobEnding(EXIT_REQUEUE, problem, requeue=not self._cancelled)

    def _verdict(self, status: int, *, head_answers: bool) -> JobEnding:
        again = not self._cancelled
        if status == EXIT_REQUEUE:
            return JobEnding(status, f"stopped by {self._warned or 'a signal'} with a checkpoint", requeue=again)
        if self._warned and status in (-signal.SIGUSR1, 128 + signal.SIGUSR1):  # the latter through srun
            return JobEnding(EXIT_REQUEUE, f"{self._warned} before the driver was ready for it", requeue=again)
        if status and not head_answers:  # the driver has seen it before us
            return JobEnding(EXIT_REQUEUE, self._head_gone(), requeue=again)
        code = 128 - status if status < 0 else status
        return JobEnding(code, f"the driver ended with {code}")

    def _tick(self, agents: HostAgents) -> None:
        """Wait a moment for a signal, and take in what the agents send."""
        # Not by handlers: blocked signals wait, and none comes in the middle of a step of this loop.
        received = signal.sigtimedwait(SIGNALS, SIGNAL_POLL_S)
        if received is not None:
            self._on_signal(signal.Signals(received.si_signo).name)
        agents.poll()
        if self._watch is not None and self._watch.ended:
            lost = "should the first host be lost now, the job must be requeued by hand"
            self._say(f"warning: the step of the orphan watch ended (exit {self._watch.status}): {lost}")
            self._watch = None

    def _on_signal(self, name: str) -> None:
        """The driver first: its time has begun."""
        self._cancelled |= name == CANCEL.name
        if self._warned:
            self._say(f"{name}: already leaving" + (", and now for good" if self._cancelled else ""))
            return
        self._warned = name
        if self._driver is not None:
            self._driver.send_signal(signal.SIGUSR1)
        self._say(f"{name}: saving a checkpoint at the next step boundary, then leaving")
        self._ledger.append(JobWarned(signal=name, job=self._job.job_id))
        if name != signal.SIGTERM.name:  # after which the job has KillWait, and Slurm itself sees to the end of it
            self._time_left = TimeLeft(self._job.job_id, self._scheduler, self._say)


def block_signals() -> None:
    """First of all, here and in all processes that start from here: one that comes too early waits for `sigtimedwait`.

    SIGUSR1 is the supervisor's own way to stop the driver.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGUSR1, lambda *_: None)  # some send it to the batch shell; ours is SIGUSR2


def job_environment(token: Path) -> dict[str, str]:
    """For what the supervisor starts: the job's own token, and nobody else's Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONUNBUFFERED": "1"}
