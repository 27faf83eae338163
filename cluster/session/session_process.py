"""The process that holds Ray for `stoker train`: whatever Ray breaks, it breaks in there.

Ray ends a process that loses its GCS or raylet. So the driver keeps Ray out of its own process, and can start it anew.
Messages are lines of JSON on the session's standard output.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from configs.checkout import CHECKOUT

Message = dict[str, Any]
_SILENCE_S = 60.0
_GUARD_S = 20.0


class SessionProcess:
    """`python -m MODULE`, told `plan` in one line; it leaves when its standard input closes."""

    def __init__(self, module: str, plan: Message, errors: Path) -> None:
        errors.parent.mkdir(parents=True, exist_ok=True)
        with errors.open("ab") as file:
            # A session of its own: Ctrl-C reaches the driver alone, which decides.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],  # a user's data.py in the working folder is not ours
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *_own_path()])},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(plan).encode() + b"\n")
        self._process.stdin.flush()
        os.set_blocking(self._process.stdout.fileno(), False)
        self._received = b""
        self._heard = time.monotonic()

    def receive(self) -> list[Message]:
        """What it has told since the last call."""
        assert self._process.stdout is not None
        while block := self._process.stdout.read(1 << 16):
            self._heard = time.monotonic()
            self._received += block
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines if line.startswith(b"{")]  # Ray may print what it likes

    @property
    def ended(self) -> bool:
        """Whether the process is gone; what it told before can still be received."""
        return self._process.poll() is not None

    @property
    def silent(self) -> bool:
        """It ticks a few times a second: after a minute of silence it waits for something that will not come."""
        return time.monotonic() - self._heard > _SILENCE_S

    @property
    def status(self) -> int | None:
        """As subprocess.Popen.returncode."""
        return self._process.returncode

    def kill(self) -> None:
        """End it at once; its guard ends what it started."""
        self._process.kill()
        self._process.wait()


def wait_for_guard(folder: Path) -> None:
    """Until the guards of ended sessions have removed what lay in `folder`, the driver's private one."""
    deadline = time.monotonic() + _GUARD_S
    while any(folder.glob("ray-*")) and time.monotonic() < deadline:
        time.sleep(0.05)


def _own_path() -> list[str]:
    return list(filter(None, [os.environ.get("PYTHONPATH")]))
