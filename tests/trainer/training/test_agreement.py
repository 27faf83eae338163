"""What the ranks agree on before a step: packed into one sum of numbers, and unpacked as what it was."""

from dataclasses import fields, replace
from typing import Any

import pytest

from trainer.rank.ranks import Ranks
from trainer.training.agreement import Agreement
from trainer.training.outcome import Leave

NOTHING = Agreement(
    targets=0.0,
    skipped_samples=0,
    leave=Leave.STAY,
    unreadable=False,
    save_failed=False,
    hopeless=False,
    previous_loss=0.0,
    previous_broken=False,
)
SHARES: dict[str, Any] = {
    "targets": 96.0,
    "skipped_samples": 3,
    "leave": Leave.PREEMPTION,
    "unreadable": True,
    "save_failed": True,
    "hopeless": True,
    "previous_loss": 1 / 3,
    "previous_broken": True,
}


def _sum(*shares: Agreement) -> Agreement:
    """As the all-reduce sums them, element by element."""
    return Agreement.unpack([sum(numbers) for numbers in zip(*(share.pack() for share in shares), strict=True)])


@pytest.mark.parametrize("name", [field.name for field in fields(Agreement)])
def test_each_field_comes_out_of_the_sum_as_itself_and_with_its_type(name: str) -> None:
    share = replace(NOTHING, **{name: SHARES[name]})
    total = _sum(share, NOTHING)
    assert total == share
    assert [type(getattr(total, field.name)) for field in fields(Agreement)] == [
        type(getattr(share, field.name)) for field in fields(Agreement)
    ]


def test_counts_add_up_and_a_flag_is_true_where_several_ranks_raise_it() -> None:
    share = replace(NOTHING, targets=32.0, skipped_samples=2, previous_loss=0.25, unreadable=True, save_failed=True)
    total = _sum(share, share, share)
    assert total == replace(share, targets=96.0, skipped_samples=6, previous_loss=0.75)


def test_a_single_rank_agrees_with_itself() -> None:
    share = replace(NOTHING, **SHARES)
    assert share.sum_over(Ranks(0, 1)) == share


def test_one_number_a_field() -> None:
    assert len(NOTHING.pack()) == len(fields(Agreement))
    with pytest.raises(ValueError, match="shorter"):
        Agreement.unpack([0.0])
