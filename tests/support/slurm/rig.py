"""A real Slurm cluster of virtual hosts on this machine, for tests: real daemons, real links, real power loss.

A host has namespaces of its own for network, processes, name, IPC and mounts. Nothing listens outside of them. Needs
root, and Debian's slurm-wlm, libslurm-dev, munge, iproute2, procps and gcc.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.processes.file_lock import try_lock
from configs.checkout import CHECKOUT

HERE = Path(__file__).parent
NETWORK = "10.77.0"
PREFIX = "slurm-rig-"
CONTROLLER = "ctl"


def missing_tools() -> list[str]:
    """What the rig needs and this machine has not."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    tools = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "tc", "unshare", "nsenter", "setpriv", "pgrep", "gcc")
    missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
    headers = [] if Path("/usr/include/slurm/spank.h").exists() else ["libslurm-dev"]
    return [*(["root"] if os.getuid() else []), *missing, *headers]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 1200.0) -> None:
    """Raises AssertionError when it does not happen in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.5)


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


class Rig:
    """Inside a `with`: a controller `ctl`, from which to submit, and hosts n1 … of 4 announced cpus each."""

    def __init__(self, hosts: int) -> None:
        remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self.hosts = [f"n{number}" for number in range(1, hosts + 1)]
        # Locked before it gets the name that `remove_abandoned` looks for.
        self._lock = try_lock(self.folder / "owner.new")
        (self.folder / "owner.new").rename(self.folder / "owner.lock")
        self._names = self.folder.name.removeprefix(PREFIX)[:6]  # of the network namespaces

    def __enter__(self) -> "Rig":
        try:
            for name in ("run/munge", "etc", "state", "log", "spool", "hosts", "jobs"):
                (self.folder / name).mkdir(parents=True)
            self._make_network()
            self._configure()
            for host in (CONTROLLER, *self.hosts):
                self._boot(host)
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        tear_down(self.folder)
        if self._lock is not None:
            os.close(self._lock)

    def inside(
        self, host: str, *command: str | Path, folder: Path | None = None, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a virtual host."""
        return run(*self._enter(host, folder or self.folder / "jobs", variables), *command, check=check)

    def _enter(self, host: str, folder: Path, variables: dict[str, str]) -> list[str]:
        own = {"SLURM_CONF": str(self.folder / "etc/slurm.conf"), **variables}
        flags = ["-n", "-u", "-i", "-m", "-p", f"--wd={folder}"]
        return ["nsenter", "-t", str(self._pid(host)), *flags, "env", *(f"{k}={v}" for k, v in own.items())]

    def stoker(self, *arguments: str | Path, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command, on the controller, as the user of a login host gives it."""
        return self.inside(
            *(CONTROLLER, sys.executable, "-m", "trainer", *arguments),
            folder=folder,
            check=check,
            PYTHONPATH=str(CHECKOUT),
            XDG_CONFIG_HOME=str(self.folder / "config"),
            COLUMNS="200",
        )

    def processes(self, host: str) -> list[str]:
        """Command lines on a host, without those of the rig and of Slurm's own daemon."""
        lines = self.inside(host, "ps", "-ww", "-eo", "args", "--no-headers").stdout.splitlines()
        return [line for line in lines if not re.search(r"host_init.sh|^sleep 3600|slurmd -N|^ps -ww|<defunct>$", line)]

    def states(self) -> dict[str, str]:
        """Of the hosts, as sinfo has them."""
        out = self.inside(CONTROLLER, "sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout
        return dict(line.split() for line in out.splitlines())

    def power_off(self, host: str) -> None:
        """The link goes first, so that nobody gets a FIN or RST; then every process there is gone."""
        self.cut(host)
        os.kill(self._pid(host), signal.SIGKILL)
        time.sleep(0.2)
        self.heal(host)

    def power_on(self, host: str) -> None:
        """With its daemon."""
        if not Path(f"/proc/{self._pid(host)}").exists():
            self._boot(host)
        shutil.rmtree(self.folder / "spool" / host, ignore_errors=True)
        (self.folder / "spool" / host).mkdir()
        self.inside(host, "slurmd", "-N", host, "-f", self.folder / "etc/slurm.conf")

    def kill(self, host: str, command: str, signal_name: str = "KILL") -> None:
        """A signal for the processes of a host with this in their command line; there must be some."""
        self.inside(host, "pkill", "--signal", signal_name, "--full", "--", command)

    def start_controller(self) -> None:
        self.inside(CONTROLLER, "slurmctld", "-f", self.folder / "etc/slurm.conf")

    def cut(self, host: str) -> None:
        """Take the link of a host down at the switch: packets vanish."""
        run("ip", "-n", self._namespace("switch"), "link", "set", f"to-{host}", "down")

    def heal(self, host: str) -> None:
        run("ip", "-n", self._namespace("switch"), "link", "set", f"to-{host}", "up")

    def break_link(self, host: str, other: str) -> None:
        """Between these two hosts alone."""
        self.inside(host, "ip", "route", "add", "blackhole", self._address(other))

    def mend_link(self, host: str, other: str) -> None:
        self.inside(host, "ip", "route", "del", "blackhole", self._address(other))

    def _address(self, host: str) -> str:
        return f"{NETWORK}.{10 + [CONTROLLER, *self.hosts].index(host)}"

    def slow_down(self, host: str, rate: str) -> None:
        """What the host sends, as by a bad cable; `rate` as tc has it."""
        limit = ["tbf", "rate", rate, "burst", "64kbit", "latency", "400ms"]
        self.inside(host, "tc", "qdisc", "add", "dev", "net0", "root", *limit)

    def speed_up(self, host: str) -> None:
        self.inside(host, "tc", "qdisc", "del", "dev", "net0", "root")

    def _namespace(self, host: str) -> str:
        return f"{self._names}-{host}"

    def _pid(self, host: str) -> int:
        return int((self.folder / "run" / f"{host}.pid").read_text())

    def _make_network(self) -> None:
        switch = self._namespace("switch")
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        lines = ["127.0.0.1 localhost"]
        for number, host in enumerate((CONTROLLER, *self.hosts), start=10):
            own = self._namespace(host)
            run("ip", "netns", "add", own)
            run(
                "ip", "link", "add", "net0", "netns", own, "type", "veth", "peer", "name", f"to-{host}", "netns", switch
            )
            run("ip", "-n", own, "addr", "add", f"{NETWORK}.{number}/24", "dev", "net0")
            run("ip", "-n", own, "link", "set", "lo", "up")
            run("ip", "-n", own, "link", "set", "net0", "up")
            run("ip", "-n", switch, "link", "set", f"to-{host}", "master", "bridge", "up")
            lines.append(f"{NETWORK}.{number} {host}")
        (self.folder / "etc/hosts").write_text("\n".join(lines) + "\n")

    def _configure(self) -> None:
        values = {
            "folder": str(self.folder),
            "network": NETWORK,
            "hosts": str(len(self.hosts)),
            "first_job": str(int(time.time()) % 50000 + 1000),
        }
        text = re.sub(r"@(\w+)@", lambda found: values[found[1]], (HERE / "slurm.conf").read_text())
        for number, host in enumerate(self.hosts, start=11):
            text += f"NodeName={host} NodeAddr={NETWORK}.{number} CPUs=4 RealMemory=6000 State=UNKNOWN\n"
        (self.folder / "etc/slurm.conf").write_text(text)
        self._configure_containers()
        (self.folder / "etc/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self.folder / "etc/munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        shutil.chown(key, "munge")
        for path in (self.folder, self.folder / "etc", self.folder / "run", self.folder / "run/munge"):
            path.chmod(0o755)
        shutil.chown(self.folder / "run/munge", "munge")

    def _configure_containers(self) -> None:
        """Stand-ins for pyxis and apptainer, which no package of Debian has."""
        plugin, commands = self.folder / "etc/pyxis.so", self.folder / "bin"
        run("gcc", "-shared", "-fPIC", "-o", plugin, HERE / "pyxis.c")
        (self.folder / "etc/plugstack.conf").write_text(f"required {plugin} {HERE}/container_root.sh\n")
        commands.mkdir()
        (commands / "apptainer").symlink_to(HERE / "apptainer.sh")

    def make_image(self, name: str) -> Path:
        """With `/opt/stoker/python3`, and without Slurm's commands, this checkout, and a /tmp with anything in it."""
        image = self.folder / "jobs" / name
        layer = image / "layer/opt/stoker"
        for folder in (layer, image / "root", image / "scratch"):
            folder.mkdir(parents=True)
        (layer / "image").write_text(name)
        (layer / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (layer / "python3").chmod(0o755)
        commands = [shutil.which(command) for command in ("srun", "sbatch", "scontrol", "scancel", "squeue", "sinfo")]
        (image / "absent").write_text("\n".join(["/tmp", str(CHECKOUT), *filter(None, commands), ""]))
        return image

    def _boot(self, host: str) -> None:
        up = self.folder / "run" / f"{host}.up"
        up.unlink(missing_ok=True)
        own = {str(CHECKOUT), str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix).resolve())}
        shared = sorted(path for path in own if path.startswith("/tmp/"))
        unshare = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--propagation=private"]
        init = HERE / "host_init.sh"
        with (self.folder / "log" / f"{host}.log").open("a") as log:
            outer = subprocess.Popen(
                ["ip", "netns", "exec", self._namespace(host), *unshare, *("bash", init, host, self.folder), *shared],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(up.exists, f"host {host} is up")
        (self.folder / "run" / f"{host}.pid").write_text(run("pgrep", "-P", str(outer.pid)).stdout.strip())

    def _start_daemons(self) -> None:
        munge = self.folder / "run/munge"
        run(
            *("setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups", "munged", "--force"),
            *(f"--key-file={self.folder}/etc/munge.key", f"--socket={munge}/sock", f"--pid-file={munge}/munged.pid"),
            *(f"--log-file={munge}/munged.log", f"--seed-file={munge}/munged.seed", "--num-threads=4"),
        )
        self.start_controller()
        for host in self.hosts:
            self.power_on(host)
        self.wait_idle()

    def wait_idle(self) -> None:
        wait_until(lambda: set(self.states().values()) == {"idle"}, "all hosts are idle")


def tear_down(folder: Path) -> None:
    """End a rig: the kernel ends all processes of a host with its first; then munged, links and files."""
    pids = [int(path.read_text() or 0) for path in (folder / "run").glob("**/*.pid") if path.is_file()]
    for pid in pids:
        if str(folder) in _command_line(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    names = folder.name.removeprefix(PREFIX)[:6]
    for line in run("ip", "netns", "list").stdout.splitlines():
        if line.startswith(f"{names}-"):
            run("ip", "netns", "del", line.split()[0])
    shutil.rmtree(folder, ignore_errors=True)


def _command_line(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def remove_abandoned() -> None:
    """Rigs whose test run was killed."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        lock = try_lock(folder / "owner.lock") if (folder / "owner.lock").exists() else None
        if lock is not None:
            tear_down(folder)
            os.close(lock)
