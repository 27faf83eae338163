"""Which worker hangs: a pure judgement over the beats that the shells publish.

A process that is stopped, or whose host is cut off, is silent. One that waits for it inside a collective goes on
beating, without progress. So the silent one is to blame; if all beat, the one that has come least far.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Hang"]


# Of the time that a hang may take to be noticed, the part that is left for beats to travel and looks to be taken.
_SAFETY = 0.8
_MEDIANS = 5.0
# Phases that take as long as they take: data has time-outs of its own, a checkpoint may wait for a slow disk.
_PHASE_LIMIT_S = {"reading data": 1800.0, "saving": 900.0, "going back": 900.0, "validating": 300.0, "sampling": 300.0}
_START_S = 600.0
_TRAINING = ("forward", "backward", "optimizer step", "agreement", "training")


@dataclass(frozen=True)
class Beat:
    """What one rank said, and since when (on the observer's clock) the same."""

    facts: Mapping[str, Any]
    changed: float  # since the shell or the process said anything new
    progressed: float  # since the process's main thread came further


@dataclass(frozen=True)
class Hang:
    """The rank to blame, and what to say of it."""

    rank: int
    message: str
    facts: Mapping[str, Any]


def observe(before: Beat | None, facts: Mapping[str, Any], now: float) -> Beat:
    """The beat of a rank after looking once more."""
    if before is None:
        return Beat(facts, now, now)
    # Both must go on: a stopped shell would repeat nothing, a stopped process leaves its shell beating alone.
    alive = all(now_ != then for now_, then in zip(_signs(facts), _signs(before.facts), strict=True))
    moved = facts.get("progress") != before.facts.get("progress")
    # Where both have not gone on yet, the signs of before are kept, to be compared with later.
    kept = facts if alive else {**facts, "shell": before.facts.get("shell"), "beats": before.facts.get("beats")}
    return Beat(kept, now if alive else before.changed, now if moved else before.progressed)


def _signs(facts: Mapping[str, Any]) -> tuple[Any, Any]:
    shell = facts.get("shell")
    return shell, facts.get("beats", shell)  # the process may not have begun yet


def find_hang(beats: Mapping[int, Beat], now: float, *, hang_timeout_s: float) -> Hang | None:
    """The hang that the beats tell of, or None."""
    step_s = max((beat.facts.get("step_s") or 0.0 for beat in beats.values()), default=0.0)
    limit_s = _SAFETY * max(hang_timeout_s, _MEDIANS * step_s)
    silent = {rank: beat for rank, beat in beats.items() if now - beat.changed > limit_s}
    if silent:
        rank = min(silent, key=lambda rank: silent[rank].changed)
        return _hang(rank, beats[rank], now - beats[rank].changed, "has not been heard of")
    stuck = {
        rank: beat
        for rank, beat in beats.items()
        if now - beat.progressed > _limit_s(beat.facts, limit_s, bool(step_s))
    }
    if not stuck:
        return None
    rank = min(stuck, key=lambda rank: (_distance(stuck[rank].facts), stuck[rank].progressed))
    return _hang(rank, beats[rank], now - beats[rank].progressed, "has made no progress")


def _limit_s(facts: Mapping[str, Any], limit_s: float, warm: bool) -> float:
    phase = facts.get("phase", "starting")
    if phase in _TRAINING:
        return limit_s if warm else max(limit_s, 60.0)  # the first steps also compile and allocate
    return max(limit_s, _PHASE_LIMIT_S.get(phase, _START_S))


def _distance(facts: Mapping[str, Any]) -> int:
    return int(facts.get("progress", 0))


def _hang(rank: int, beat: Beat, seconds: float, what: str) -> Hang:
    facts = beat.facts
    message = (
        f"rank {rank} on {facts.get('host')} (pid {facts.get('pid')}) {what} for {seconds:.1f} s at step "
        f"{facts.get('step', 0) + 1} ({facts.get('phase', 'starting')})"
    )
    return Hang(rank, message, facts)
