"""Figures of benchmarks/checkpoint/__main__.py -> the report, in Markdown."""

from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from statistics import median

from benchmarks.checkpoint.checkpoint_contenders import (
    DCP_ASYNC,
    DCP_SYNC,
    NATIVE,
    RAW,
    RAW_DIRECT,
    STOKER,
    CheckpointFigures,
    Rounds,
)
from benchmarks.common.markdown import machine, table


def report(results: Mapping[int, Rounds], load: float) -> str:
    """`results`: rounds of every way by ZeRO stage; `load` is the load average before."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed"))
    parts = [
        "# Speed of checkpoints",
        f"`python -m benchmarks.checkpoint` on {date.today()}: {machine()}; load average {load:.1f}; {packages}.",
        "A GPT of 50 M parameters with AdamW, fp32: masters and two moments, 12 bytes per parameter, on 2 ranks "
        "of one thread each. Medians over rounds after the first, seconds of the slower rank. *stall*: the training "
        "loop stands still; *on disk*: from the call to the published (Stoker), synced (DCP, raw) or written "
        "(DeepSpeed, which does not sync) checkpoint; *load*: cold page cache, with verification of every byte "
        "(Stoker, raw) or of none (DeepSpeed). Memory is the growth of one rank's resident memory at its highest. "
        "Ratios compare ways of one round.",
    ]
    for stage, rounds in results.items():
        parts += [f"## ZeRO-{stage}", _figures(rounds[1:]), _verdicts(rounds)]
    return "\n\n".join(parts) + "\n"


def _figures(rounds: Rounds) -> str:
    rows = []
    for way in (STOKER, NATIVE, DCP_SYNC, DCP_ASYNC, RAW, RAW_DIRECT):
        own = [r[way] for r in rounds]
        rows.append(
            [
                way,
                _shown(own, lambda f: f.stall_s, "{:.3f}"),
                _shown(own, lambda f: f.total_s, "{:.2f}"),
                _shown(own, lambda f: f.written_bytes / f.total_s / 1e6, "{:,.0f}"),
                _shown(own, lambda f: f.load_s, "{:.2f}"),
                _shown(own, lambda f: f.written_bytes / 1e6, "{:.0f}"),
            ]
        )
    return table(["", "stall s", "on disk s", "MB/s", "load s", "MB"], rows)


def _shown(figures: list[CheckpointFigures], of: Callable[[CheckpointFigures], float], form: str) -> str:
    value = median(of(f) for f in figures)
    return form.format(value) if value else "–"


def _verdicts(rounds: Rounds) -> str:
    first, later = rounds[0], rounds[1:]
    rows = [
        _row("stall / DeepSpeed's stall", later, lambda r: r[STOKER].stall_s / r[NATIVE].stall_s, 0.15, False),
        _row("stall / DCP async's stall", later, lambda r: r[STOKER].stall_s / r[DCP_ASYNC].stall_s, 1.0, False),
        _row("write speed / raw write + fsync", later, lambda r: r[RAW].total_s / _written_s(r), 0.8, True),
        _row("write speed / raw direct write", later, lambda r: r[RAW_DIRECT].total_s / _written_s(r), None, True),
        _row("load speed / raw read + sha256", later, lambda r: r[RAW].load_s / r[STOKER].load_s, 0.8, True),
        _row(
            "load speed / raw direct read + sha256",
            later,
            lambda r: r[RAW_DIRECT].load_s / r[STOKER].load_s,
            None,
            True,
        ),
        _row("load / DeepSpeed's load", later, lambda r: r[STOKER].load_s / r[NATIVE].load_s, 1.0, False),
        _row("memory of the first save / own state", [first], lambda r: _memory(r[STOKER]), 1.1, False),
        _row("memory of a later save / own state", later, lambda r: _memory(r[STOKER]), 1.1, False),
    ]
    return table(["ratio", "worst", "median", "goal"], rows)


def _written_s(figures: Mapping[str, CheckpointFigures]) -> float:
    return figures[STOKER].total_s - figures[STOKER].stall_s


def _memory(figures: CheckpointFigures) -> float:
    return figures.memory_bytes / (figures.state_bytes / 2)


def _row(
    name: str,
    rounds: Rounds,
    of: Callable[[Mapping[str, CheckpointFigures]], float],
    goal: float | None,
    more_is_better: bool,
) -> list[str]:
    ratios = [of(r) for r in rounds]
    worst, middle = (min if more_is_better else max)(ratios), median(ratios)
    verdict = "–"
    if goal is not None:
        met = middle >= goal if more_is_better else middle <= goal
        verdict = f"{'≥' if more_is_better else '≤'} {goal}: {'met' if met else 'short'}"
    return [name, f"{worst:.2f}", f"**{middle:.2f}**", verdict]
