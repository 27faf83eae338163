"""The figures of a logging interval follow from its counts and seconds alone."""

from trainer.metrics.interval import Interval, StepCounts, Workload


def _workload(units: str = "tokens") -> Workload:
    return Workload(
        samples_per_step=8,
        flops_per_target=3.0,
        units="tokens" if units == "tokens" else "images",
        peak_flops=lambda: 240.0,
    )


def _counts() -> StepCounts:
    counts = StepCounts()
    for targets in (100.0, 60.0):
        counts.add(targets, own_s=1.5)
    return counts


def test_seconds_are_sums_step_s_is_per_step_and_the_wait_is_that_of_the_slowest_rank() -> None:
    """6 s of training of which 1 s was spent waiting for a rank that itself waited 2 s for its data, and 1 s here."""
    interval = Interval(_counts(), training_s=6.0, data_wait_s=1.0, checkpoint_s=3.0, validation_s=9.0)
    assert list(interval.figures(_workload(), step=5, targets_so_far=400, longest_data_wait_s=2.0).items()) == [
        ("samples", 40),
        ("samples_per_s", 1.6),  # 16 samples in 5 + 2 + 3 seconds: validation is not counted
        ("step_s", 2.5),
        ("data_wait_s", 2.0),
        ("checkpoint_s", 3.0),
        ("validation_s", 9.0),
        ("mfu", 0.2),  # 160 targets · 3 FLOP in 10 s, of 240 FLOP/s
        ("tokens", 400),
        ("tokens_per_s", 16.0),
    ]


def test_images_are_no_tokens() -> None:
    interval = Interval(_counts(), training_s=1.0, data_wait_s=0.0, checkpoint_s=0.0, validation_s=0.0)
    figures = interval.figures(_workload("images"), step=5, targets_so_far=400, longest_data_wait_s=0.0)
    assert not figures.keys() & {"tokens", "tokens_per_s"}


def test_an_interval_whose_steps_were_all_left_out_has_figures_too() -> None:
    interval = Interval(StepCounts(), training_s=0.0, data_wait_s=0.0, checkpoint_s=0.0, validation_s=0.0)
    figures = interval.figures(_workload(), step=1, targets_so_far=0, longest_data_wait_s=0.5)
    assert (figures["samples_per_s"], figures["mfu"], figures["step_s"]) == (0.0, 0.0, 1e-9)
