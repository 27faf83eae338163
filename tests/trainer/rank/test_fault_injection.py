"""What `--chaos` takes, and what it refuses."""

import pytest

from configs.errors import RecipeError
from trainer.rank.fault_injection import parse_fault


def test_a_fault_strikes_its_rank_in_its_step_and_phase() -> None:
    fault = parse_fault("kill:rank=1@step=40,phase=optimizer step")
    assert fault.strikes(1, 40, "optimizer step")
    assert not fault.strikes(1, 40, "forward")
    assert not fault.strikes(0, 40, "optimizer step")
    assert not fault.strikes(1, 41, "optimizer step")
    assert parse_fault("stop:rank=0@step=2").strikes(0, 2, "training")


@pytest.mark.parametrize(
    "text", ["kill", "kill:rank=1", "burn:rank=1@step=4", "kill:rank=x@step=4", "kill:rank=1@step=4,p=2"]
)
def test_what_is_no_fault_is_refused_with_the_form_of_one(text: str) -> None:
    with pytest.raises(RecipeError, match="is no fault: give kill:rank=1@step=40"):
        parse_fault(text)
