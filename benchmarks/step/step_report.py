"""Figures -> the report, in Markdown. Pure but for what it asks of the machine."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from statistics import median

from benchmarks.common.markdown import machine, table
from benchmarks.common.setting import CONTEXT_TOKENS, MICRO_BATCHES, MICRO_ROWS, STEP_TOKENS, WARM_UP_STEPS, WORKERS
from benchmarks.step.step_contenders import DDP, DEEPSPEED, LOOPS, STOKER, MeasuredSteps

GOAL = 0.95
SPANS = ("forward", "backward", "step", "around the engine", "agreement", "data wait", "reporting", "rest")


def report(rounds: Sequence[Mapping[str, MeasuredSteps]], starts: Mapping[str, Sequence[float]], load: float) -> str:
    """All of it; `load` is the load average before the benchmark."""
    steps = rounds[0][STOKER].steps
    parts = [
        "# Speed of a training step",
        f"`make bench` on {date.today()}: {machine()}; load average before it {load:.1f}; "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "ray"))
        + ".",
        f"A byte-level GPT of 4.9 M parameters, fp32, {WORKERS} processes of one thread each (gloo), "
        f"{MICRO_BATCHES} micro-batches of {MICRO_ROWS} rows of {CONTEXT_TOKENS} tokens per process and step "
        f"({STEP_TOKENS} tokens per step), fused AdamW, clipping at 1.0. **Stoker**: `trainer.training.worker.main`, "
        f"ZeRO-1, reading shards, a line of figures every {WARM_UP_STEPS} steps, timed by these lines of "
        "`metrics.jsonl`. **DeepSpeed** (ZeRO-1) and **PyTorch DDP**: bare loops on a batch held in memory. "
        f"Rounds of {steps} steps of each loop after {WARM_UP_STEPS} to warm up, all in one pair of processes, the "
        "loops in another order each round; a ratio compares loops of one round.",
        _speed(rounds),
        "Where a step's time goes: milliseconds per step on rank 0, median over rounds. *around the engine*: what "
        "Stoker's `train_step` adds to DeepSpeed's calls; *agreement*: the all-reduce of target counts and flags, "
        "with the wait for the slower worker; *reporting*: metrics.jsonl, TensorBoard, progress.json; *cpu*: processor "
        "time of the process, all its threads.",
        _spans(rounds),
    ]
    if starts:
        parts += [
            "From the command to the end of the first step, alternating. The plain script "
            "(`benchmarks/step/plain_ray.py`) ran once before, as DeepSpeed compiles an operator for it the first "
            "time.",
            _starts(starts),
        ]
    return "\n\n".join(parts) + "\n"


def _speed(rounds: Sequence[Mapping[str, MeasuredSteps]]) -> str:
    numbers = [str(index + 1) for index in range(len(rounds))]
    rows = [[f"{loop}, tokens/s", *_row([r[loop].tokens_per_s for r in rounds], "{:,.0f}".format)] for loop in LOOPS]
    for other in (DEEPSPEED, DDP):
        ratios = [r[STOKER].tokens_per_s / r[other].tokens_per_s for r in rounds]
        verdict = "met" if median(ratios) >= GOAL else "short"
        *each, middle = _row(ratios, "{:.3f}".format)
        rows.append([f"**Stoker / {other}**", *each, f"**{middle}** ({GOAL}: {verdict})"])
    return table(["round", *numbers, "median"], rows)


def _spans(rounds: Sequence[Mapping[str, MeasuredSteps]]) -> str:
    def of(loop: str, seconds: Callable[[MeasuredSteps], float]) -> str:
        return f"{median(1e3 * seconds(r[loop]) / r[loop].steps for r in rounds):.1f}"

    def span(name: str) -> Callable[[MeasuredSteps], float]:
        return lambda block: block.spans_s.get(name, 0.0)

    columns: dict[str, Callable[[MeasuredSteps], float]] = {
        **{name: span(name) for name in SPANS},
        "total": lambda block: block.wall_s,
        "cpu": lambda block: block.cpu_s,
    }
    return table(["ms per step", *LOOPS], [[name, *(of(loop, f) for loop in LOOPS)] for name, f in columns.items()])


def _starts(starts: Mapping[str, Sequence[float]]) -> str:
    count = len(next(iter(starts.values())))
    rows = [[f"{name}, s", *_row(times, "{:.1f}".format)] for name, times in starts.items()]
    return table(["round", *(str(index + 1) for index in range(count)), "median"], rows)


def _row(values: Sequence[float], show: Callable[[float], str]) -> list[str]:
    return [*map(show, values), show(median(values))]
