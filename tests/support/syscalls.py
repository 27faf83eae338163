"""Runs a function in a forked child and stops or kills it at the entry of its N-th system call, of any thread.

Uses ptrace, as strace does, but needs no program installed: Linux lets every process trace its own children.
"""

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress

_TRACEME, _SYSCALL, _SETOPTIONS = 0, 24, 0x4200
_TRACESYSGOOD, _TRACECLONE, _EXITKILL = 0x1, 0x8, 0x100000
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request:#x}): {os.strerror(error)}; this test needs to trace its own children")


def kill_at_system_call(act: Callable[[], None], number: int | None) -> int:
    """`interrupt_at_system_call` by SIGKILL."""
    return interrupt_at_system_call(act, number, lambda child: os.kill(child, signal.SIGKILL))


def interrupt_at_system_call(act: Callable[[], None], number: int | None, interrupt: Callable[[int], None]) -> int:
    """Fork, run `act`, and call `interrupt` with the child's id while it stands at the entry of its `number`-th call.

    Returns the calls that it entered. Unless it is killed it ends by itself; raises AssertionError unless with success.
    """
    child = os.fork()
    if child == 0:
        _run_traced(act)
    os.waitpid(child, 0)  # stopped by itself
    _ptrace(_SETOPTIONS, child, _TRACESYSGOOD | _TRACECLONE | _EXITKILL)
    _ptrace(_SYSCALL, child)
    entered, inside = 0, dict[int, bool]()
    while True:
        thread, status = os.waitpid(-child, _WALL)  # its group: other children are the caller's
        if not os.WIFSTOPPED(status):
            if thread == child:
                assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the child failed: {status}"
                return entered
            continue
        passed_on, stop = 0, os.WSTOPSIG(status)
        if stop == _SYSCALL_STOP:
            inside[thread] = not inside.get(thread, False)
            entered += inside[thread]
            if inside[thread] and entered == number:
                interrupt(child)
        elif stop not in (signal.SIGTRAP, signal.SIGSTOP):
            passed_on = stop
        with suppress(ProcessLookupError):  # killed meanwhile
            _resume(thread, passed_on)


def _resume(thread: int, passed_on: int) -> None:
    if _libc.ptrace(_SYSCALL, thread, None, passed_on) == -1:
        raise ProcessLookupError(ctypes.get_errno(), "gone")


def _run_traced(act: Callable[[], None]) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        act()
        code = 0
    finally:
        os._exit(code)


def kill_after(act: Callable[[], None], seconds: float) -> None:
    """Fork, run `act`, and kill the child after a while, wherever it is then."""
    import time

    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
