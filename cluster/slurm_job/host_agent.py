"""Runs Ray on one host of a job. Started by srun, once on each: `python -m cluster.slurm_job.host_agent PLAN`.

It ends with its standard input, which is the supervisor's. Should the first host be out of reach, it ends Ray here at
once, so that a host that is cut off writes nothing more, and joins again when it can.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.hosts.health_process import HostCheck
from cluster.hosts.health_report import CheckPlan
from cluster.hosts.host_fitness import OBJECT_STORE_BYTES, host_problems, measure_host_health
from cluster.hosts.network import address_towards, free_port, interface_address, interface_of, reaches
from cluster.processes.private_folder import private_folder
from cluster.processes.process_tree import adopt_orphans, die_with_parent, end_descendants
from cluster.ray_cluster.live_hosts import RayHosts
from cluster.slurm.scheduler import SlurmCommands
from cluster.slurm_job.lost_head import OrphanWatch
from configs.errors import RunFolderError, StokerError, UnfitHostError

SHIELDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
AGENT_POLL_S = 0.5  # between two looks at Ray and at the first host
BEAT_S = 5.0  # between two reports that this host is there
PROBE_TIMEOUT_S = 1.0
# Ray gives a silent host up after about five seconds: this one must be quiet by then.
FENCE_S = 3.5
STABLE_S = 60.0
RESTARTS = 5  # in a row, of a Ray that does not stay up for STABLE_S
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class AgentPlan:
    """The same for all hosts of a job; plain data, for a command line."""

    head: str  # host name
    address: str  # HOST:PORT of Ray's GCS
    token: str  # path on the shared file system
    folder: str  # of the run, ditto
    cpus: int
    gpus: int
    memory_bytes: int | None
    interface: str | None
    job_id: str
    hosts: list[str]
    max_requeues: int
    check_address: str | None  # HOST:PORT for the full health check; None: without
    contained: bool  # the agents are in containers, and cluster/slurm_job/orphan_step.py runs beside them

    def encode(self) -> str:
        """One word of a command line; `decode` takes it back."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "AgentPlan":
        """From what `encode` gave."""
        return cls(**json.loads(text))


def ray_command(plan: AgentPlan, host: str, address: str, folder: Path, client_port: int) -> list[str]:
    """`ray start` on `host`, whose own address is `address`; every port but the first host's GCS is any free one."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={address}", f"--node-name={host}", f"--temp-dir={folder / 'ray'}"),
        *(f"--num-cpus={plan.cpus}", f"--num-gpus={plan.gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        *("--include-log-monitor=false", "--log-style=record", "--log-color=false"),
    ]
    if plan.memory_bytes is not None:
        command.append(f"--memory={max(plan.memory_bytes - OBJECT_STORE_BYTES, OBJECT_STORE_BYTES)}")
    if host != plan.head:
        return [*command, f"--address={plan.address}"]
    port = plan.address.rpartition(":")[2]
    # Ray would start its client server at a fixed port, where another job's may be.
    return [
        *command,
        *("--head", f"--port={port}", "--no-monitor", "--include-dashboard=false"),
        f"--ray-client-server-port={client_port}",
    ]


def ray_environment(plan: AgentPlan, interface: str) -> dict[str, str]:
    """For Ray and the workers: no RAY_* variable of the surroundings counts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": plan.token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_niceness": "0",  # by default 15: a worker's shell must not starve beside the training
        # It looks at the whole host, where other jobs have memory too; Slurm keeps the limit of this one.
        "RAY_memory_monitor_refresh_ms": "0",
        **HEALTH,
    }
    interfaces = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    accelerator = {} if plan.gpus else {"DS_ACCELERATOR": "cpu"}
    return {**interfaces, **kept, **accelerator, **ours}


def orphan_watch(plan: AgentPlan, host: str) -> OrphanWatch:
    """That of `host`, with Slurm's own commands: outside of any container."""
    hosts = (plan.head, host)
    folder = Path(plan.folder)
    return OrphanWatch(plan.job_id, hosts, len(plan.hosts), plan.max_requeues, folder, SlurmCommands(), say)


class Agent:
    """Keeps Ray running on this host for as long as there is a reason to."""

    def __init__(self, plan: AgentPlan, host: str, folder: Path) -> None:
        self._plan, self._host, self._folder = plan, host, folder
        head = plan.address.rpartition(":")[0]
        own = interface_address(plan.interface) if plan.interface else None
        self._own = own or (head if host == plan.head else address_towards(head))
        self._interface = plan.interface or interface_of(self._own)
        self._ray: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._heard = time.monotonic()  # from the first host
        self._answered = False
        self._restarts = 0
        self._hosts: RayHosts | None = None
        self._reported: set[str] | None = None
        self._health: HostCheck | None = None
        self._checked = False
        self._beat = 0.0
        self._orphan = None if plan.contained else orphan_watch(plan, host)

    def run(self) -> int:
        """Until the supervisor ends it or leaves this host out (0), or it cannot go on (1)."""
        self._report_presence()
        self._start()
        while not leave_requested(self._host, AGENT_POLL_S):
            problem = self._check()
            if problem is not None:
                say(f"{self._host}: {problem}\n{self.last_words()}")
                send_message({"failed": {"host": self._host, "message": problem, "code": 1}})
                return 1
        return 0

    def _check(self) -> str | None:
        """One look at Ray and at the first host; what makes it pointless to go on."""
        self._report_health()
        self._report_presence()
        if self._host == self._plan.head:
            self._report_hosts()
            return f"Ray's head ended ({_how(self._ray)})" if self._ended() else None
        if reaches(self._plan.address, PROBE_TIMEOUT_S):
            self._heard, self._answered = time.monotonic(), True
            return self._restart() if self._ended() else None
        silent_s = time.monotonic() - self._heard
        if silent_s > FENCE_S:
            if self._answered and self._ray is not None:  # before, its Ray is not up yet, and ours waits for it
                # Fencing: a host that is cut off must not go on writing while the run starts again elsewhere.
                self._kill()
                say(f"{self._host}: {self._plan.head} has not answered for {silent_s:.1f} s: ended Ray here")
            if self._orphan is not None:
                self._orphan.look()
        return None

    def _report_presence(self) -> None:
        if time.monotonic() - self._beat > BEAT_S:
            self._beat = time.monotonic()
            send_message({"here": self._host})

    def _report_hosts(self) -> None:
        """To the supervisor, when it is news: the hosts whose Ray is alive, as the head sees it."""
        if not reaches(self._plan.address, PROBE_TIMEOUT_S):
            return
        if self._hosts is None:
            self._hosts = RayHosts(self._plan.address, self._plan.token)
        alive = self._hosts.alive()
        if alive is not None and alive != self._reported:
            send_message({"alive": sorted(alive)})
            self._reported = alive

    def _start_health_check(self) -> None:
        """Beside Ray, which takes as long to start; once."""
        if self._plan.check_address is None or self._checked:
            return
        hosts, address = tuple(self._plan.hosts), self._plan.check_address
        plan = CheckPlan(self._plan.folder, hosts, hosts.index(self._host), address)
        others = {} if self._plan.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # another job's gpus are not ours to judge
        environment = {**ray_environment(self._plan, self._interface), **others}
        self._health = HostCheck(plan, environment, self._folder / "check.log")

    def _report_health(self) -> None:
        if self._health is not None and (report := self._health.report()):
            send_message({"checked": report.as_dict()})
            self._health, self._checked = None, True

    def _ended(self) -> bool:
        return self._ray is None or self._ray.poll() is not None

    def _restart(self) -> str | None:
        if self._ray is not None:
            say(f"{self._host}: Ray ended ({_how(self._ray)})")
            stable = time.monotonic() - self._started > STABLE_S
            self._restarts = 1 if stable else self._restarts + 1
            if self._restarts > RESTARTS:
                return f"Ray did not stay up in {self._restarts} starts in a row"
        self._kill()
        say(f"{self._host}: starting Ray again")
        self._start()
        return None

    def _start(self) -> None:
        command = ray_command(self._plan, self._host, self._own, self._folder, free_port(self._own))
        self._ray = subprocess.Popen(
            command,
            env=ray_environment(self._plan, self._interface),
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "start.log").open("ab"),
            stderr=subprocess.STDOUT,
            # Out of the agent's process group, whose signals are not for Ray; but tied to the agent, or Ray would
            # outlive an agent that is killed.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._started = time.monotonic()
        self._start_health_check()

    def _kill(self) -> None:
        self._ray = self._health = None
        end_descendants(timeout_s=3.0)

    def last_words(self) -> str:
        """The end of what `ray start` said, for the job's output."""
        log = self._folder / "start.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join([line for line in lines if "_server) " not in line][-10:])  # without Ray's own trace


def _how(process: subprocess.Popen[bytes] | None) -> str:
    status = process.returncode if process else None
    return f"signal {-status}" if status is not None and status < 0 else f"exit {status}"


def leave_requested(host: str, timeout_s: float) -> bool:
    """Wait that long for the end of standard input, or a line there with the name of this host."""
    import select

    readable, _, _ = select.select([0], [], [], timeout_s)
    if not readable:
        return False
    order = os.read(0, 1 << 12)
    return not order or host in order.decode().splitlines()


def send_message(message: dict[str, object]) -> None:
    """To the supervisor, through srun."""
    print(json.dumps(message), flush=True)  # noqa: T201


def say(message: str) -> None:
    """To the job's output."""
    print(f"stoker: {time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)  # noqa: T201


def check_shared(plan: AgentPlan, host: str) -> None:
    """Raises RunFolderError when this host does not see what the first one wrote."""
    for path in (plan.folder, plan.token):
        if not Path(path).exists():
            raise RunFolderError(
                f"{path} is on {plan.head}, but not on {host}: put run.dir on a file system that all hosts share"
            )


def check_fit(plan: AgentPlan) -> None:
    """Raises UnfitHostError when this host has too little memory or space, or its clock is off."""
    try:
        found = host_problems(measure_host_health(Path(plan.folder)), plan.memory_bytes or 0)
    except OSError as error:
        raise UnfitHostError(f"{plan.folder} cannot be written from here: {error.strerror}") from error
    if found:
        raise UnfitHostError("; ".join(found))


def main(plan: AgentPlan) -> int:
    """Until the supervisor ends it, or it cannot go on; the exit code. Nothing that it started remains."""
    # `scancel --signal` reaches every process of a step, which Ray would leave at. It is for the supervisor alone to
    # decide, so the signals are blocked, here and in all that starts from here. SIGKILL ends us all the same.
    signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    adopt_orphans()  # before anything starts: what Ray starts leaves its parent, and `end_descendants` is to find it
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    with ExitStack() as stack:
        try:
            check_shared(plan, host)
            check_fit(plan)
            agent = Agent(plan, host, stack.enter_context(private_folder()))
        except StokerError as error:
            say(f"{host}: {error}")
            unfit = isinstance(error, UnfitHostError)
            send_message({"failed": {"host": host, "message": str(error), "code": error.exit_code, "unfit": unfit}})
            return error.exit_code
        code = agent.run()
        left = end_descendants(timeout_s=3.0)
        if left:
            say(f"{host}: processes {left} would not end")
        return code


if __name__ == "__main__":
    sys.exit(main(AgentPlan.decode(sys.argv[1])))
