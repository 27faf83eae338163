"""Faults inside a run that no process dies of: all workers leave together, the cause is told, nothing is lost."""

from pathlib import Path

import pytest

from cluster.run.run_folder import RunFolder
from tests.support.training.runs import (
    GPT,
    RESNET,
    events,
    history,
    recipe_of,
    spoil_image,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from trainer.checkpoint.folder_store import published_steps


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_cannot_be_decoded_is_named_and_the_steps_before_it_are_kept(tmp_path: Path, split: str) -> None:
    write_image_shards(tmp_path)
    spoil_image(tmp_path / f"{split}-000000.tar")
    recipe = recipe_of(tmp_path, RESNET, "torn", validation={"every_steps": 3})
    train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    (left,) = events(recipe, "data_fault")
    assert published_steps(RunFolder.of(recipe).checkpoints) == ([left["step"]] if left["step"] else [])
    assert left["step"] == 3 if split == "val" else left["step"] < 10
    assert len(history(recipe)) == left["step"]
    assert f"{split}-000000.tar" in events(recipe, "fault")[0]["message"]
    assert events(recipe, "fault")[0]["exit_code"] == 2


def test_a_label_out_of_range_is_named_with_its_shard_and_key(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    recipe = recipe_of(tmp_path, {**RESNET, "classes": 2}, "labels")
    train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    message = events(recipe, "fault")[0]["message"]
    assert "train-00000" in message
    assert "cls" in message
    assert not events(recipe, "finished")
    assert published_steps(RunFolder.of(recipe).checkpoints) == []


def test_a_loss_that_is_no_number_ends_the_run_at_once(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    overflowing = {**GPT, "init_std": 1e38}
    recipe = recipe_of(tmp_path, overflowing, "nan", checkpoint={"every_steps": 1}, validation=None)
    with pytest.raises(AssertionError, match="NonFiniteError"):
        train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    fault = events(recipe, "fault")[0]
    assert "at step" in fault["message"]
    assert fault["final"]
    assert not events(recipe, "finished")
    assert published_steps(RunFolder.of(recipe).checkpoints) == []
