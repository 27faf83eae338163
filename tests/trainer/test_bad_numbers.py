"""Bad numbers in real runs: found, told, left out for good; and the run ends as if they had never been there."""

from pathlib import Path
from typing import Any

import pytest

from configs.recipe import Recipe
from tests.trainer.bad_batches import CAUSES, bad_recipe, keys_of, leave_out_from_the_start, write_bad_batches
from tests.trainer.runs import digests, events, history, train_in_processes


def _zero(stage: int) -> dict[str, Any]:
    return {"zero": {"stage": stage}}


def _policy(name: str, **more: Any) -> dict[str, Any]:
    return {"bad_numbers": {"policy": name, "spike": {"window_steps": 5, "z": 10.0}, **more}}


def _attempts(recipe: Recipe) -> int:
    return len(events(recipe, "attempt_started"))


@pytest.mark.parametrize("stage", range(4))
def test_a_run_that_skips_or_goes_back_ends_in_every_bit_as_if_it_had_known(tmp_path: Path, stage: int) -> None:
    write_bad_batches(tmp_path)
    known, skipped, back = (
        bad_recipe(tmp_path, name, **_zero(stage), **_policy(policy))
        for name, policy in (("known", "stop"), ("skipped", "skip_batch"), ("back", "rollback"))
    )
    leave_out_from_the_start(known, *CAUSES)
    train_in_processes(tmp_path / "store", 2, [(known, None), (skipped, None), (back, None)])
    assert history(skipped) == history(back) == history(known)
    assert digests(skipped, 10) == digests(back, 10) == digests(known, 10)
    assert [line["step"] for line in history(known) if line.get("left_out")] == list(CAUSES)
    assert (_attempts(skipped), _attempts(back)) == (1, 4)
    for recipe in (skipped, back):
        found = events(recipe, "bad_number")
        assert {e["step"]: e["cause"] for e in found} == CAUSES
        assert [e["keys"] for e in found] == [keys_of(recipe, step) for step in CAUSES]
