"""The learning rate: pure in the step, with its fixed points exact."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.recipe import Schedule
from trainer.training.lr_schedule import learning_rate

BASE_LR = 0.3
runs = st.integers(2, 200).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, steps - 1)))
falling = st.sampled_from(["cosine", "linear"])


def rates(kind: str, steps: int, warmup: int, min_lr: float = 0.01) -> list[float]:
    schedule = Schedule.model_validate({"kind": kind, "warmup_steps": warmup, "min_lr": min_lr})
    return [learning_rate(schedule, BASE_LR, step, steps) for step in range(1, steps + 1)]


@given(run=runs, kind=st.sampled_from(["cosine", "linear", "constant"]))
def test_warm_up_rises_evenly_from_above_zero_to_the_base_rate(run: tuple[int, int], kind: str) -> None:
    steps, warmup = run
    found = rates(kind, steps, warmup)[:warmup]
    assert found == pytest.approx([BASE_LR * (step + 1) / warmup for step in range(warmup)])
    assert all(rate > 0 for rate in found)
    assert not found or found[-1] == BASE_LR


@given(run=runs, kind=falling, min_lr=st.floats(0, BASE_LR))
def test_after_warm_up_it_never_rises_and_ends_exactly_at_min_lr(
    run: tuple[int, int], kind: str, min_lr: float
) -> None:
    steps, warmup = run
    found = rates(kind, steps, warmup, min_lr)[warmup:]
    assert found[-1] == min_lr
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise([BASE_LR, *found]))


def test_half_way_both_kinds_stand_in_the_middle_and_cosine_leaves_the_top_more_slowly() -> None:
    cosine, linear = rates("cosine", 100, 0), rates("linear", 100, 0)
    assert cosine[49] == pytest.approx((BASE_LR + 0.01) / 2)
    assert linear[49] == pytest.approx((BASE_LR + 0.01) / 2)
    assert cosine[9] > linear[9] + 0.01


def test_constant_stays() -> None:
    assert rates("constant", 10, 2)[2:] == [BASE_LR] * 8


@pytest.mark.parametrize("step", [0, 11])
def test_a_step_outside_the_run_is_an_error(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} is outside the run's steps 1 … 10"):
        learning_rate(Schedule(), BASE_LR, step, 10)
