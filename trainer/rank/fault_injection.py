"""`--chaos`: real faults at a chosen place of a run, for users who want to see it recover, and for our tests.

`kill:rank=1@step=40` ends rank 1's process by SIGKILL in step 40; `stop` stops it (SIGSTOP), `raise` raises in it,
`term` sends SIGTERM. `phase=` says where in the step (forward, backward, "optimizer step", validating, saving,
"going back", "restoring the checkpoint", …); without it, at the step's first phase. A fault strikes once in a run,
unless it says `always`.
"""

import os
import signal
from dataclasses import dataclass

from cluster.run.ledger import Ledger
from cluster.run.run_events import ChaosStruck
from configs.errors import RecipeError

__all__ = ["Chaos", "no_chaos", "parse_fault"]


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
_KINDS = (*_SIGNALS, "raise")
_FORM = "kill:rank=1@step=40, with kill, stop, term or raise, and phase=NAME or always behind the step"


class ChaosError(Exception):
    """The exception of `--chaos raise:…`."""


@dataclass(frozen=True)
class InjectedFault:
    """`step` is the one being worked on; in the phases before training it is the one that comes next."""

    text: str
    kind: str
    rank: int
    step: int
    phase: str | None
    always: bool

    def strikes(self, rank: int, step: int, phase: str) -> bool:
        """Whether its time has come."""
        return (rank, step) == (self.rank, self.step) and self.phase in (None, phase)


def parse_fault(text: str) -> InjectedFault:
    """Raises RecipeError when `text` is no fault."""
    kind, _, rest = text.partition(":")
    who, at, where = rest.partition("@")
    fields = dict(item.partition("=")[::2] for item in [who, *where.split(",")] if item)
    known = fields.keys() <= {"rank", "step", "phase", "always"}
    numbers = [fields.get(name, "").strip() for name in ("rank", "step")]
    if kind not in _KINDS or not at or not known or not all(number.isdecimal() for number in numbers):
        raise RecipeError(f"--chaos {text!r} is no fault: give {_FORM}")
    rank, step = map(int, numbers)
    return InjectedFault(text, kind, rank, step, fields.get("phase"), "always" in fields)


class Chaos:
    """The faults of one rank in one attempt; those that struck in an earlier attempt of this command are over."""

    def __init__(self, texts: list[str], rank: int, invocation: str, ledger: Ledger) -> None:
        events = ledger.events()
        struck = {e.fault for e in events if isinstance(e, ChaosStruck) and e.invocation == invocation}
        faults = [parse_fault(text) for text in texts]
        self._faults = [fault for fault in faults if fault.rank == rank and (fault.always or fault.text not in struck)]
        self._rank, self._invocation, self._ledger = rank, invocation, ledger

    def __call__(self, phase: str, step: int) -> None:
        """At each phase of the step after `step`."""
        for fault in self._faults:
            if fault.strikes(self._rank, step + 1, phase):
                self._faults.remove(fault)
                self._strike(fault, phase)
                return

    def _strike(self, fault: InjectedFault, phase: str) -> None:
        self._ledger.append(ChaosStruck(fault=fault.text, phase=phase, rank=self._rank, invocation=self._invocation))
        if fault.kind == "raise":
            raise ChaosError(f"asked for by --chaos {fault.text}")
        if fault.kind == "term":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # workers leave signals to the driver
        os.kill(os.getpid(), _SIGNALS[fault.kind])


def no_chaos(phase: str, step: int) -> None:
    """When nothing was asked for."""
