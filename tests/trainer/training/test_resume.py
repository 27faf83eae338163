"""A stopped and resumed run is the run that was never stopped, bit for bit; on another layout it is the same run."""

from pathlib import Path
from typing import Any

import pytest

from cluster.run.ledger import read_json_lines
from configs.recipe import Recipe
from tests.support.training.runs import (
    GPT,
    RESNET,
    digests,
    history,
    recipe_of,
    run_folder_of,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)


@pytest.mark.parametrize("model", [GPT, RESNET], ids=["gpt", "resnet"])
def test_a_run_stopped_at_step_7_and_resumed_equals_one_never_stopped(tmp_path: Path, model: dict[str, Any]) -> None:
    (write_text_shards if model is GPT else write_image_shards)(tmp_path)
    pairs, jobs = [], []
    for stage in range(4):
        whole = recipe_of(tmp_path, model, f"whole-{stage}", zero={"stage": stage})
        cut = recipe_of(tmp_path, model, f"cut-{stage}", zero={"stage": stage}, checkpoint={"every_steps": 3})
        pairs.append((whole, cut))
        jobs += [(whole, None), (cut, 7), (cut, None)]
    train_in_processes(tmp_path / "store", 2, jobs)
    for whole, cut in pairs:
        assert len(history(whole)) == 10
        assert history(whole) == history(cut)
        assert digests(whole, 10) == digests(cut, 10)
    assert all(digests(whole, 10).keys() == digests(pairs[0][0], 10).keys() for whole, _ in pairs)


def _samples_by_step(recipe: Recipe) -> dict[int, list[str]]:
    """Sample keys of each committed step, over all ranks, from the audit of the last attempt that trained it."""
    steps: dict[int, list[str]] = {}
    folder = run_folder_of(recipe) / "audit"
    for attempt in sorted({int(path.name.split("-")[1]) for path in folder.iterdir()}):
        found: dict[int, list[str]] = {}
        for path in folder.glob(f"attempt-{attempt}-rank-*.jsonl"):
            for line in read_json_lines(path):
                found.setdefault(line["step"], []).extend(line["keys"])
        steps |= found
    return {step: sorted(keys) for step, keys in steps.items()}


def test_a_checkpoint_of_two_workers_loads_on_one_and_three_and_any_stage(tmp_path: Path) -> None:
    """Three workers do not divide four micro-batches: empty ones of weight zero fill the gap."""
    write_text_shards(tmp_path)
    whole = recipe_of(tmp_path, GPT, "whole", zero={"stage": 1})
    moved = recipe_of(tmp_path, GPT, "moved", zero={"stage": 2}, checkpoint={"every_steps": 5, "keep_last": 10})
    train_in_processes(tmp_path / "two", 2, [(whole, None), (moved, 4)])
    later = recipe_of(tmp_path, GPT, "moved", zero={"stage": 3}, checkpoint={"every_steps": 5, "keep_last": 10})
    train_in_processes(tmp_path / "three", 3, [(later, 7)])
    last = recipe_of(tmp_path, GPT, "moved", zero={"stage": 0}, checkpoint={"every_steps": 5, "keep_last": 10})
    train_in_processes(tmp_path / "one", 1, [(last, None)])
    assert _samples_by_step(whole) == _samples_by_step(moved)
    for before, after in zip(history(whole), history(moved), strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
