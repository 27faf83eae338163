"""Where every thread of a hung process is, appended to its log: by py-spy, else by faulthandler."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cluster.forks.child_end import STACKS_SIGNAL

_PY_SPY_TIMEOUT_S = 5.0
_HANDLER_S = 0.5  # for faulthandler to write, which says nothing when it is done


def dump_stacks(pid: int, log: Path) -> None:
    """Append the stacks of process `pid` to `log`, native frames too where the process is not stopped."""
    stopped = is_stopped(pid)
    with log.open("ab") as file:
        heading = f"\n--- stacks of process {pid}{', which is stopped (SIGSTOP)' if stopped else ''} ---\n"
        os.write(file.fileno(), heading.encode())
        # py-spy waits for the process in order to read native frames: in vain for a stopped one.
        ways = ["--nonblocking"] if stopped else ["--native", "--nonblocking"]
        if any(_py_spy(pid, way, file.fileno()) for way in ways) or stopped:
            return
    # A stopped process would run its handler only when it goes on, and then write into the log of another attempt.
    os.kill(pid, STACKS_SIGNAL)  # faulthandler, inside the process
    time.sleep(_HANDLER_S)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or a debugger holds the process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


def _py_spy(pid: int, way: str, descriptor: int) -> bool:
    tool = shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if tool is None:
        return False
    command = [tool, "dump", "--pid", str(pid), way]
    try:
        done = subprocess.run(
            command, stdout=descriptor, stderr=subprocess.DEVNULL, timeout=_PY_SPY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
