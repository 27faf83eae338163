"""The hosts of one start of a job: which take part in the run, which are lost, and whether the rest has room for it."""

import time
from collections.abc import Callable, Sequence

from cluster.hosts.health_report import (
    SLOW_FRACTION,
    UNFIT_FRACTION,
    HostReport,
    report_lines,
    slow_hosts,
    unreachable_hosts,
)
from cluster.run.job_events import HostBack, HostLost, HostsChecked, HostUnfit
from cluster.run.ledger import Ledger
from cluster.slurm.job_environment import SlurmJob
from cluster.slurm.lost_host_rules import rejoin_timeout_s, unreliable_hosts, workers_that_fit
from cluster.slurm.requeue_rules import JobEnding
from cluster.slurm_job.agent_step import HostAgents
from configs.errors import EXIT_FAILED, EXIT_REQUEUE, ClusterError
from configs.recipe import Workers
from configs.sections.slurm_section import Slurm


class JobHosts:
    """A host that failed its health check, or is far worse than the others, is left out where there is a spare one."""

    def __init__(
        self,
        job: SlurmJob,
        slurm: Slurm,
        workers: Workers,
        can_do_without: Callable[[Sequence[str]], bool],
        ledger: Ledger,
        say: Callable[[str], None],
    ) -> None:
        """`can_do_without`: whether the cluster has enough others for the job. May raise ClusterError."""
        self._job, self._slurm, self._workers = job, slurm, workers
        self._can_do_without, self._ledger, self._say = can_do_without, ledger, say
        self._head = job.hosts[0]
        self._names = list(job.hosts)  # that take part
        self._leaving: set[str] = set()
        self._lost: dict[str, float] = {}  # host: when it was missed first
        self._compared = slurm.health_check != "full"

    @property
    def names(self) -> list[str]:
        """Hosts that take part and are not lost, in Slurm's order."""
        return [host for host in self._names if host not in self._lost]

    def not_ready(self, agents: HostAgents) -> list[str]:
        """Whose Ray is not up yet, or whose check has not ended."""
        needs_report = self._slurm.health_check == "full"
        return [h for h in self.names if h not in agents.alive or (needs_report and h not in agents.reports)]

    def begin(self, agents: HostAgents) -> tuple[bool, JobEnding | None]:
        """Whether the run can begin, or the ending instead of it; to be asked again and again."""
        for host, message, code in _gave_up(agents):
            if host in self._names:
                return False, JobEnding(code, f"{host}: {message}", requeue=code == EXIT_FAILED)
        for host, cause in _unfit(agents).items():
            if host in self._names and not self._leave_out(agents, host, cause):
                self._record_unfit(host, cause)
                return False, JobEnding(EXIT_FAILED, f"{host}: {cause}", requeue=True)
        if silent := [host for host in agents.silent() if host in self.names]:
            return False, self.without(silent, f"the agent on {', '.join(silent)} is not heard of any more")
        if self.not_ready(agents):
            return False, None
        if not self._compared:
            self._compared = True
            return False, self._compare(agents)
        return not self._leaving & agents.alive, None  # Ray must not place a worker on a host that is left out

    def without(self, missing: list[str], why: str) -> JobEnding | None:
        """None when the run begins without the hosts that did not join."""
        for host in missing:
            self._record_loss(host, "it did not join")
        if self._head not in missing and rejoin_timeout_s(self._slurm, self._workers, self._room()) is None:
            self._say(f"{why}: going on without")
            return None
        return JobEnding(EXIT_FAILED, why, requeue=True)

    def look(self, agents: HostAgents, now: float) -> str | None:
        """What makes it pointless to go on, by the hosts that are lost."""
        for host in self._names:
            if host not in agents.alive and host not in self._lost:
                self._record_loss(host, "Ray there does not answer")
            if host in agents.alive and self._lost.pop(host, 0.0):
                self._ledger.append(HostBack(host=host, job=self._job.job_id))
                self._say(f"host {host} is back")
        timeout_s = rejoin_timeout_s(self._slurm, self._workers, self._room())
        for host, since in self._lost.items():
            if timeout_s is not None and now - since > timeout_s:
                return f"host {host} did not come back within {timeout_s:.0f} s"
        return None

    def _room(self, without: int = 0) -> int:
        """Workers that fit on the hosts that are there."""
        return workers_that_fit(self._workers, len(self.names) - without, self._job.cpus, self._job.gpus)

    def _leave_out(self, agents: HostAgents, host: str, cause: str) -> bool:
        """False when the run needs the host."""
        if host == self._head or rejoin_timeout_s(self._slurm, self._workers, self._room(without=1)) is not None:
            return False
        self._record_unfit(host, cause)
        self._say(f"host {host} is left out: {cause}")
        self._names.remove(host)
        self._leaving.add(host)
        agents.leave_out(host)
        return True

    def _compare(self, agents: HostAgents) -> JobEnding | None:
        reports = [agents.reports[host] for host in self.names]
        self._tell(reports)
        for host, cause in {**slow_hosts(reports, UNFIT_FRACTION), **unreachable_hosts(reports)}.items():
            if self._leave_out(agents, host, cause):
                reports = [report for report in reports if report.host != host]
            elif self._is_spare(host):
                self._record_unfit(host, cause)
                return JobEnding(EXIT_REQUEUE, f"{host}: {cause}", requeue=True)
        for host, cause in slow_hosts(reports, SLOW_FRACTION).items():
            self._say(f"warning: host {host} holds the others up: {cause}")
        remaining = {report.host for report in reports}
        for report in reports:
            if broken := {other: why for other, why in report.broken.items() if other in remaining}:
                other, why = next(iter(broken.items()))
                return JobEnding(EXIT_FAILED, f"no all-reduce between {report.host} and {other}: {why}", requeue=True)
        return None

    def _tell(self, reports: list[HostReport]) -> None:
        for report in reports:
            self._say(f"{report.host}: {'; '.join(report_lines(report))}")
        rates = {r.host: {"flops": r.flops, "links": r.links, "disk_bytes_per_s": r.disk_bytes_per_s} for r in reports}
        together = reports[0].all_reduce_bytes_per_s
        self._ledger.append(HostsChecked(job=self._job.job_id, hosts=rates, all_reduce_bytes_per_s=together))

    def _is_spare(self, host: str) -> bool:
        """Whether the cluster could give another one for it."""
        excluded = unreliable_hosts(self._ledger.events(), self._job.job_id)
        try:
            return self._can_do_without([*excluded, host])
        except ClusterError as error:
            self._say(f"host {host} is not fit, but Slurm cannot be asked for another one: {error}")
            return False

    def _record_unfit(self, host: str, cause: str) -> None:
        self._ledger.append(HostUnfit(host=host, job=self._job.job_id, cause=cause))

    def _record_loss(self, host: str, cause: str) -> None:
        self._lost.setdefault(host, time.monotonic())
        self._ledger.append(HostLost(host=host, job=self._job.job_id, cause=cause))
        self._say(f"host {host} is lost: {cause}; slurm.on_node_loss is {self._slurm.on_node_loss}")


def _gave_up(agents: HostAgents) -> list[tuple[str, str, int]]:
    """Agents that ended for another reason than their host's health: host, message, exit code."""
    failures = agents.failed.values()
    return [(str(f["host"]), str(f["message"]), int(f["code"])) for f in failures if not f.get("unfit")]


def _unfit(agents: HostAgents) -> dict[str, str]:
    """Hosts that did not pass their check, and why."""
    failed = {host: str(failure["message"]) for host, failure in agents.failed.items() if failure.get("unfit")}
    return failed | {host: "; ".join(report.problems) for host, report in agents.reports.items() if report.problems}
