"""The learning rate as a function of the step alone: nothing to save, nothing to restore."""

import math

from configs.recipe import Schedule

_CYCLE_START = 1 / 25  # of the highest rate, as torch's OneCycleLR has it


def learning_rate(schedule: Schedule, base_lr: float, step: int, steps: int) -> float:
    """Learning rate of `step`, which counts from 1 to `steps`. Raises ValueError for a step outside the run.

    Linear warm-up reaches `base_lr` at `schedule.warmup_steps` (one_cycle: by a cosine, from a 25th). Then cosine
    (Loshchilov and Hutter 2017), linear, one_cycle (Smith and Topin 2018) and the last `decay_steps` of wsd (Hu et al.
    2024) fall to exactly `schedule.min_lr` at the last step; cosine_restarts falls to it again and again (Loshchilov
    and Hutter 2017); inverse_sqrt goes on with the root of what has passed (Vaswani et al. 2017).
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is outside the run's steps 1 … {steps}")
    warmup = schedule.warmup_steps
    if step <= warmup:
        return base_lr * (_cycle_rise(step / warmup) if schedule.kind == "one_cycle" else step / warmup)
    match schedule.kind:
        case "constant":
            return base_lr
        case "inverse_sqrt":
            return base_lr * math.sqrt(max(warmup, 1) / step)
        case "cosine_restarts":
            height = _cosine(_part_of_period(schedule, step - warmup))
        case "wsd":
            height = min(1.0, (steps - step) / (schedule.decay_steps or 1))
        case "linear":
            height = 1 - (step - warmup) / (steps - warmup)
        case _:
            height = _cosine((step - warmup) / (steps - warmup))
    return base_lr if height == 1.0 else schedule.min_lr + (base_lr - schedule.min_lr) * height


def _cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def _cycle_rise(progress: float) -> float:
    return 1.0 if progress == 1 else 1 - (1 - _CYCLE_START) * _cosine(progress)


def _part_of_period(schedule: Schedule, passed: int) -> float:
    """How much of its period is over after `passed` steps since the warm-up: above 0, and 1 at its last step."""
    length, factor = schedule.period_steps or 1, schedule.period_factor or 1
    if factor == 1:
        return ((passed - 1) % length + 1) / length
    while passed > length:
        passed, length = passed - length, length * factor
    return passed / length
