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


def _rates(steps: int, **schedule: object) -> list[float]:
    made = Schedule.model_validate({"min_lr": 0.01, **schedule})
    return [learning_rate(made, BASE_LR, step, steps) for step in range(1, steps + 1)]


@given(run=runs, decay=st.integers(1, 50))
def test_wsd_stays_and_falls_evenly_over_its_last_steps(run: tuple[int, int], decay: int) -> None:
    steps, warmup = run
    decay = min(decay, steps - warmup)
    found = _rates(steps, kind="wsd", warmup_steps=warmup, decay_steps=decay)
    assert found[warmup : steps - decay] == [BASE_LR] * (steps - decay - warmup)
    assert found[-1] == 0.01
    assert found[steps - decay :] == pytest.approx(
        [0.01 + (BASE_LR - 0.01) * left / decay for left in range(decay - 1, -1, -1)]
    )


def test_inverse_sqrt_is_half_after_four_times_the_warm_up_whatever_the_length_of_the_run() -> None:
    found = _rates(400, kind="inverse_sqrt", warmup_steps=100)
    assert (found[99], found[399]) == (BASE_LR, pytest.approx(BASE_LR / 2))
    assert _rates(200, kind="inverse_sqrt", warmup_steps=100) == found[:200]


def test_one_cycle_rises_from_a_25th_by_a_cosine_and_falls_by_one_as_torch_has_it() -> None:
    import torch

    steps, warmup = 100, 30
    found = _rates(steps, kind="one_cycle", warmup_steps=warmup, min_lr=0.0)
    assert found[warmup - 1] == BASE_LR and found[-1] == 0.0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, BASE_LR, total_steps=steps + 1, pct_start=(warmup + 1) / (steps + 1), final_div_factor=1e9
    )
    for rate in found:
        optimizer.step()
        theirs.step()
        assert rate == pytest.approx(theirs.get_last_lr()[0], abs=1e-8)


def test_cosine_restarts_come_after_each_period_and_periods_grow_by_their_factor() -> None:
    even = _rates(40, kind="cosine_restarts", period_steps=10)
    assert even[:10] == even[10:20] == even[30:] and even[9] == 0.01 and even[10] > 0.25
    growing = _rates(70, kind="cosine_restarts", period_steps=10, period_factor=2, warmup_steps=0)
    assert [number + 1 for number, rate in enumerate(growing) if rate == 0.01] == [10, 30, 70]
    assert _rates(25, kind="cosine_restarts", period_steps=10) == even[:25]


@pytest.mark.parametrize(
    ("kind", "key"), [("wsd", "decay_steps"), ("cosine_restarts", "period_steps"), ("one_cycle", "warmup_steps")]
)
def test_a_schedule_that_lacks_its_key_is_refused(kind: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"schedule.kind {kind} needs schedule.{key}: give the number of steps"):
        Schedule.model_validate({"kind": kind})


@pytest.mark.parametrize("step", [0, 11])
def test_a_step_outside_the_run_is_an_error(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} is outside the run's steps 1 … 10"):
        learning_rate(Schedule(), BASE_LR, step, 10)
