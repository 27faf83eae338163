"""Which checkpoints are kept: the last few, every so many steps for good, the best by a validation figure."""

import math
from collections.abc import Mapping, Sequence

from configs.recipe import Checkpoint


def steps_to_remove(
    steps: Sequence[int], figures: Mapping[int, Mapping[str, float]], settings: Checkpoint
) -> list[int]:
    """The published `steps` that no rule keeps, oldest first. `figures`: of a validation at a step. Pure."""
    kept = set(sorted(steps)[-settings.keep_last :])
    if settings.keep_every_steps:
        kept |= {step for step in steps if step % settings.keep_every_steps == 0}
    if settings.keep_best:
        best = settings.keep_best
        # A checkpoint without a figure, or with one that is no number, is never the best; nor does it push one out.
        known = [step for step in steps if math.isfinite(figures.get(step, {}).get(best.metric, math.nan))]
        sign = 1.0 if (best.mode or best.natural_mode) == "min" else -1.0
        # Of equal ones the newer: it is kept anyway for a while.
        kept |= set(sorted(known, key=lambda step: (sign * figures[step][best.metric], -step))[: best.count])
    return sorted(step for step in steps if step not in kept)
