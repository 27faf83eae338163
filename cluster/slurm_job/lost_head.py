"""A job whose first host is gone, and with it the supervisor: with `--no-kill`, Slurm lets the others wait for ever.

So an agent that survives requeues the job, as soon as Slurm itself has given the first host up.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.run.job_events import HostLost, JobEnded
from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from cluster.slurm.job_environment import expand_hosts
from cluster.slurm.requeue_job import refuse_requeue, requeue
from cluster.slurm.requeue_rules import JobEnding
from cluster.slurm.scheduler import Scheduler
from configs.errors import EXIT_REQUEUE, ClusterError

LOOK_S = 3.0  # between two questions of one host, at the least
QUESTIONS_PER_S = 20.0  # to Slurm's controller, by all hosts together


def takeover_host(job: Mapping[str, str], head: str) -> str | None:
    """The host that acts for an orphaned job, by what scontrol says of it; None while the job is none."""
    hosts = expand_hosts(job.get("NodeList", ""))
    if job.get("JobState") != "RUNNING" or job.get("BatchHost") != head or head in hosts or not hosts:
        return None
    return hosts[0]


class OrphanWatch:
    """Requeues an orphaned job, or ends it. `look` is called while the first host does not answer."""

    def __init__(
        self,
        job_id: str,
        hosts: tuple[str, str],
        count: int,
        max_requeues: int,
        folder: Path,
        scheduler: Scheduler,
        say: Callable[[str], None],
    ) -> None:
        """`hosts`: the first one, and this one; `count`: of all."""
        self._job_id, self._max_requeues, self._scheduler, self._say = job_id, max_requeues, scheduler, say
        self._head, self._own = hosts
        self._ledger = Ledger(RunFolder(folder).ledger)
        self._every_s = max(LOOK_S, count / QUESTIONS_PER_S)
        self._looked = 0.0
        self._told = self._done = False

    def look(self) -> None:
        """Ask Slurm, but not too often, whether it has given the first host up; if so, and this host is next, act."""
        if self._done or time.monotonic() - self._looked < self._every_s:
            return
        self._looked = time.monotonic()
        try:
            if takeover_host(self._scheduler.job(self._job_id), self._head) == self._own:
                self._end()
        except ClusterError as error:
            self._say(f"{self._own}: {self._head} does not answer, and Slurm cannot be asked: {error}")

    def _end(self) -> None:
        """Slurm ends this process within seconds of either. What fails is tried again by the next look."""
        ending = JobEnding(EXIT_REQUEUE, f"Slurm has given up the first host, {self._head}", requeue=True)
        if not self._told:
            self._ledger.append(HostLost(host=self._head, job=self._job_id, cause=ending.why))
        self._told = True
        refusal = refuse_requeue(ending, self._job_id, self._max_requeues, self._scheduler, self._ledger)
        self._say(f"{self._own}: {ending.why}{refusal or ''}")
        if refusal is None:
            requeue(ending, self._job_id, self._scheduler, self._ledger, [], self._say)
        else:
            self._scheduler.cancel(self._job_id)
            self._ledger.append(JobEnded(job=self._job_id, code=ending.code, reason=ending.why))
        self._done = True
