"""Which losses and gradients are bad: the rule by itself."""

import math

import numpy as np
import pytest

from configs.recipe import Spike
from trainer.step_health.bad_numbers import LossWindow


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_bad_whatever_the_window(value: float) -> None:
    for window in (LossWindow.of(None), LossWindow.of(Spike(window_steps=2, z=1.0), [1.0, 2.0])):
        found = window.judge(value, 1.0)
        assert found
        assert found.cause == "loss"
        found = window.judge(1.0, value)
        assert found
        assert found.cause == "gradient"


def test_the_limit_is_the_median_plus_z_robust_deviations() -> None:
    losses = np.random.default_rng(3).normal(2.0, 0.1, 50)
    window = LossWindow.of(Spike(window_steps=50, z=4.0), losses.tolist())
    limit = window.limit()
    assert limit == pytest.approx(
        np.median(losses) + 4.0 * 1.4826 * np.median(np.abs(losses - np.median(losses))), rel=1e-12
    )
    assert limit is not None
    found = window.judge(math.nextafter(limit, math.inf))
    assert found
    assert (found.cause, found.limit) == ("spike", limit)
    assert window.judge(limit) is None


def test_one_outlier_in_the_window_hides_no_other() -> None:
    window = LossWindow.of(Spike(window_steps=5, z=10.0), [2.0, 2.1, 50.0, 2.05, 1.95])
    assert window.judge(10.0)
    assert window.judge(2.3) is None


def test_a_falling_loss_is_never_bad_and_nothing_is_judged_while_the_window_fills() -> None:
    window = LossWindow.of(Spike(window_steps=4, z=3.0))
    for loss in (2.0, 900.0, 2.0, 2.0):
        assert window.judge(loss) is None
        window.accept(loss)
    assert window.judge(-1e9) is None
    assert window.judge(900.0)


def test_losses_that_hardly_differ_are_no_ground_to_call_a_small_change_a_spike() -> None:
    window = LossWindow.of(Spike(window_steps=3, z=10.0), [2.0, 2.0, 2.0])
    assert window.judge(2.0001) is None
    assert window.judge(2.1)


def test_a_shorter_window_keeps_the_newest_losses() -> None:
    window = LossWindow.of(Spike(window_steps=2, z=1.0), [9.0, 8.0, 7.0])
    assert list(window.losses) == [8.0, 7.0]
    window.accept(6.0)
    assert list(window.losses) == [7.0, 6.0]
