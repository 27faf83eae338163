"""The learning rate as a function of the step alone: nothing to save, nothing to restore."""

import math

from configs.recipe import Schedule


def learning_rate(schedule: Schedule, base_lr: float, step: int, steps: int) -> float:
    """Learning rate of `step`, which counts from 1 to `steps`.

    Linear warm-up reaches `base_lr` at `schedule.warmup_steps`; cosine (Loshchilov and Hutter 2017) and linear then
    fall to exactly `schedule.min_lr` at the last step. Raises ValueError for a step outside the run.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is outside the run's steps 1 … {steps}")
    if step <= schedule.warmup_steps:
        return base_lr * step / schedule.warmup_steps
    if schedule.kind == "constant":
        return base_lr
    progress = (step - schedule.warmup_steps) / (steps - schedule.warmup_steps)
    height = (1 + math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    return schedule.min_lr + (base_lr - schedule.min_lr) * height
