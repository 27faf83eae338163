"""Weights or optimizer state that are no numbers: never in a checkpoint, and dealt with like any other bad number."""

from pathlib import Path
from typing import Any

import pytest

from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.bad_batches import leave_out_from_the_start
from tests.support.training.runs import (
    GPT,
    digests,
    events,
    history,
    recipe_of,
    run_folder_of,
    run_jobs,
    train_in_processes,
    write_text_shards,
)

STEP, RANK = 5, 1  # no step that is saved, and the rank that does not lead


def _run_broken(recipes: list[Recipe]) -> None:
    """A real update of STEP that leaves an infinity in the last element of RANK's last optimizer state."""
    from trainer.engine.deepspeed_engine import DeepSpeedEngine
    from trainer.training import build_attempt

    class Broken(DeepSpeedEngine):
        def train_step(self, micro_batches: Any, step: int, *arguments: Any) -> Any:
            result = super().train_step(micro_batches, step, *arguments)
            if step == STEP and self._ranks.rank == RANK:
                list(self.fragments())[-1].tensor[-1] = float("inf")
            return result

    build_attempt.DeepSpeedEngine = Broken  # type: ignore[misc]
    run_jobs([(recipe, None) for recipe in recipes])


def _recipe(folder: Path, name: str, policy: str, **sections: Any) -> Recipe:
    """A checkpoint after every second step, of which one is kept; no step is logged but the first and the last."""
    defaults = {
        "checkpoint": {"every_steps": 2, "keep_last": 1},
        "validation": None,
        "monitor": {"every_steps": 100},
        "bad_numbers": {"policy": policy},
    }
    return recipe_of(folder, GPT, name, **{**defaults, **sections})


def _kept(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in (run_folder_of(recipe) / "checkpoints").iterdir())


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_state_that_is_not_finite_is_not_saved_and_the_checkpoint_before_is_kept(tmp_path: Path, stage: int) -> None:
    write_text_shards(tmp_path)
    recipe = _recipe(tmp_path, "stops", "stop", zero={"stage": stage})
    with pytest.raises(AssertionError, match="NonFiniteError"):
        run_in_processes(_run_broken, 2, tmp_path / "store", [recipe])
    assert _kept(recipe) == ["step-00000004"]
    fault = events(recipe, "fault")[0]
    assert fault["message"].startswith("exp_avg_sq of model.")
    assert " holds a value that is not finite at step 6: its samples are in " in fault["message"]
    assert (fault["step"], fault["final"]) == (6, True)
    assert [event["cause"] for event in events(recipe, "bad_number")] == ["state"]


def test_a_step_that_breaks_the_state_is_found_and_left_out_for_good(tmp_path: Path) -> None:
    """With skip_batch too the run goes back, as the update is made: both end as if they had known."""
    write_text_shards(tmp_path)
    known, skips, back = (
        _recipe(tmp_path, name, policy)
        for name, policy in (("known", "stop"), ("skips", "skip_batch"), ("back", "rollback"))
    )
    leave_out_from_the_start(known, STEP)
    run_in_processes(_run_broken, 2, tmp_path / "store", [known, skips, back])
    for recipe in (skips, back):
        (found,) = events(recipe, "bad_number")
        assert (found["step"], found["cause"], found["left_out"]) == (STEP, "state", True)
        assert [event["step"] for event in events(recipe, "resumed")] == [4]
        assert history(recipe) == history(known)
        assert digests(recipe, 10) == digests(known, 10)


def test_a_weight_that_overflows_in_fp16_alone_is_not_saved(tmp_path: Path) -> None:
    """The loss, the gradient and the fp32 weights of that step are numbers."""
    write_text_shards(tmp_path)
    optimizer = {"kind": "sgd", "lr": 1e6, "momentum": 0.9}
    sections: dict[str, Any] = {"precision": "fp16", "schedule": {"kind": "constant"}, "optimizer": optimizer}
    sections |= {"loss_scale": {"initial_power": 4}, "checkpoint": {"every_steps": 1, "keep_last": 1}}
    recipe = _recipe(tmp_path, "overflows", "stop", **sections)
    with pytest.raises(AssertionError, match="NonFiniteError"):
        train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    assert _kept(recipe) == []
    assert " in fp16 holds a value that is not finite at step 1" in events(recipe, "fault")[0]["message"]
