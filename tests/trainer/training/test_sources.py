"""Training on a mixture and on packed documents: resumed bit for bit, and its figures told."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.recipe import Recipe
from tests.support.training.runs import (
    GPT,
    digests,
    history,
    recipe_of,
    run_folder_of,
    train_in_processes,
    write_text_shards,
)

PACKED: dict[str, Any] = {"packing": "best_fit", "document_mask": True}


def _mixed(folder: Path, name: str, **data: Any) -> Recipe:
    for source in ("much", "little"):
        if not (folder / source).exists():
            write_text_shards(folder / source)
    shards = [
        {"name": "much", "shards": str(folder / "much" / "train-*.tar"), "weight": 3.0},
        {"name": "little", "shards": str(folder / "little" / "train-*.tar"), "weight": 1.0},
    ]
    recipe = recipe_of(folder, GPT, name)
    val = {"shards": str(folder / "much" / "val-*.tar")}
    fields = recipe.model_dump(by_alias=True)
    return Recipe.model_validate(fields | {"data": {"kind": "text", "train": {"shards": shards}, "val": val, **data}})


@pytest.mark.parametrize("data", [{}, PACKED], ids=["concat", "best_fit with document_mask"])
def test_a_mixture_stopped_at_step_7_and_resumed_is_the_one_never_stopped(tmp_path: Path, data: dict[str, Any]) -> None:
    whole, cut = _mixed(tmp_path, "whole", **data), _mixed(tmp_path, "cut", **data)
    train_in_processes(tmp_path / "store", 2, [(whole, None), (cut, 7), (cut, None)])
    assert history(cut) == history(whole)
    assert digests(cut, 10) == digests(whole, 10)


def test_rows_of_each_source_are_counted_in_metrics_and_tensorboard(tmp_path: Path) -> None:
    recipe = _mixed(tmp_path, "run")
    train_in_processes(tmp_path / "store", 1, [(recipe, None)])
    for line in history(recipe):
        assert line["sources"] == {"much": 6 * line["step"], "little": 2 * line["step"]}
    board = EventAccumulator(str(run_folder_of(recipe) / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("data/source/little")] == [2 * step for step in range(1, 11)]
