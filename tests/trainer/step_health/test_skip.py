"""data.on_error: skip. What cannot be used is left out the same way at any number of workers, counted and capped."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.recipe import Recipe
from data.batch import Slice
from data.dataset import open_dataset, read_micro_batch
from data.pack.shard_writer import write_shard
from tests.support.ledger_events import of_lines
from tests.support.training.runs import (
    GPT,
    RESNET,
    digests,
    events,
    history,
    recipe_of,
    spoil_image,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from trainer.step_health.skipped_samples import committed_skips

SKIP: dict[str, Any] = {"on_error": "skip"}


def _images(folder: Path, name: str, workers: int = 2, **data: Any) -> Recipe:
    recipe = recipe_of(folder, RESNET, name, workers={"count": workers})
    return Recipe.model_validate(recipe.model_copy(update={"data": recipe.data.model_copy(update={**SKIP, **data})}))


def _told(recipe: Recipe) -> list[tuple[int, str, str, str]]:
    """(step, split, shard, key) of each event of the ledger, whichever rank told it."""
    return sorted((e["step"], e["split"], Path(e["shard"]).name, e["key"]) for e in events(recipe, "sample_skipped"))


def test_a_damaged_image_is_skipped_alike_by_one_worker_two_workers_and_a_resumed_run(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    for split in ("train", "val"):
        spoil_image(tmp_path / f"{split}-000000.tar")
    one, two, cut = (_images(tmp_path, name, workers) for name, workers in (("one", 1), ("two", 2), ("cut", 2)))
    train_in_processes(tmp_path / "a", 1, [(one, None)])
    train_in_processes(tmp_path / "b", 2, [(two, None), (cut, 7), (cut, None)])
    assert _told(one) == _told(two)
    assert {split for _, split, _, _ in _told(one)} == {"train", "val"}
    last = history(one)[-1]["skipped"]
    assert last == sum(split == "train" for _, split, _, _ in _told(one)) > 0
    assert [line["skipped"] for line in history(two)] == [line["skipped"] for line in history(one)]
    assert history(cut) == history(two)
    assert digests(cut, 10) == digests(two, 10)


def test_a_skipped_image_is_in_no_statistic_of_its_micro_batch(tmp_path: Path) -> None:
    """Batch normalisation takes mean and variance over all rows: the skipped one has none."""
    write_image_shards(tmp_path)
    whole = read_micro_batch(open_dataset(_images(tmp_path, "whole"), "val"), 1, Slice(0, 0, 4), 4)
    shard = tmp_path / "val-000000.tar"
    spoil_image(shard)
    some = read_micro_batch(open_dataset(_images(tmp_path, "some"), "val"), 1, Slice(0, 0, 4), 4)
    assert (some.samples, some.targets, some.keys) == (3, 3, whole.keys)
    assert [sample.key for sample in some.skipped] == whole.keys[:1]
    for name, array in some.arrays.items():
        assert np.array_equal(array, whole.arrays[name][1:])
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x89PNX"))
    none = read_micro_batch(open_dataset(_images(tmp_path, "none"), "val"), 1, Slice(0, 0, 4), 4)
    assert (none.samples, none.targets, len(none.arrays["labels_B"])) == (0, 0, 4)  # the ranks go on together


def test_a_validation_set_of_damaged_images_ends_the_run_with_its_checkpoint(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    shard = tmp_path / "val-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x89PNX"))
    recipe = _images(tmp_path, "unseen")
    train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    (fault,) = events(recipe, "fault")
    assert "nothing in the validation set at step 5 can be used" in fault["message"]
    assert len([e for e in events(recipe, "sample_skipped") if e["split"] == "val"]) == 7
    assert [e["step"] for e in events(recipe, "checkpoint")] == [5]


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_document_that_no_packed_row_can_hold_is_told_once_and_counts(tmp_path: Path, allowed: int) -> None:
    recipe = _packed_tokens(tmp_path, {"max_skipped": allowed})
    train_in_processes(tmp_path / "store", 2, [(recipe, 7), (recipe, None)] if allowed else [(recipe, None)])
    assert _told(recipe) == [(0, "train", "train-000000.tar", "d3")]
    if allowed:
        assert [line["skipped"] for line in history(recipe)] == [1] * 10
    else:
        assert "1 samples had to be skipped up to step 1" in events(recipe, "fault")[0]["message"]


def _packed_tokens(folder: Path, data: dict[str, Any]) -> Recipe:
    """Token arrays in rows of whole documents; the header of one is broken."""
    samples = []
    for number in range(60):
        array = io.BytesIO()
        np.save(array, np.full(5 + number % 9, number, np.uint16))
        samples.append((f"d{number}", {"npy": b"no array" if number == 3 else array.getvalue()}))
    write_shard(folder / "train-000000.tar", samples)
    tokens = {"kind": "tokens", "vocab": 64, "packing": "best_fit", "train": {"shards": str(folder / "train-*.tar")}}
    return recipe_of(folder, GPT, "tokens", validation=None, data={**tokens, **SKIP, **data})


def test_more_skipped_samples_than_allowed_stop_the_run_with_the_steps_before_kept(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    spoil_image(tmp_path / "train-000000.tar")
    recipe = _images(tmp_path, "capped", max_skipped=0)
    train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    (left,) = events(recipe, "data_fault")
    (fault,) = events(recipe, "fault")
    assert "more than data.max_skipped 0" in fault["message"]
    assert fault["exit_code"] == 2
    assert len(history(recipe)) == left["step"] == _told(recipe)[0][0] - 1


def test_documents_of_a_block_with_a_flipped_bit_are_left_out_alike_by_one_and_two_workers(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    one, two = (_text(tmp_path, name, workers) for name, workers in (("one", 1), ("two", 2)))
    open_dataset(one, "train").close()  # makes the indexes
    _flip_unseen(tmp_path / "train-000001.tar")
    train_in_processes(tmp_path / "a", 1, [(one, None)])
    train_in_processes(tmp_path / "b", 2, [(two, None)])
    assert {(split, shard) for _, split, shard, _ in _told(one)} == {("train", "train-000001.tar")}
    assert _told(one) == _told(two)
    assert [line["skipped"] for line in history(two)] == [line["skipped"] for line in history(one)]


def _text(folder: Path, name: str, workers: int) -> Recipe:
    recipe = recipe_of(folder, GPT, name, workers={"count": workers})
    return Recipe.model_validate(recipe.model_copy(update={"data": recipe.data.model_copy(update=SKIP)}))


def _flip_unseen(shard: Path) -> None:
    """Flip one bit in a document, as a failing disk does: neither size nor time changes."""
    status = shard.stat()
    content = bytearray(shard.read_bytes())
    content[512 + 3] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("resumed", [0, 4, 5, 9])
def test_a_step_trained_twice_counts_its_skipped_samples_once(resumed: int) -> None:
    def event(kind: str, attempt: int, step: int) -> dict[str, Any]:
        return {"event": kind, "split": "train", "attempt": attempt, "step": step}

    first = [event("attempt_started", 1, 0), *(event("sample_skipped", 1, step) for step in (4, 4, 5, 7))]
    resumed_at_4 = [event("attempt_started", 2, 0), event("resumed", 2, 4)]
    second = [event("sample_skipped", 2, step) for step in (5, 5, 5, 8)]
    # Step 7 was trained again, and nothing was skipped then.
    assert committed_skips(of_lines([*first, *resumed_at_4, *second]), resumed) == {0: 0, 4: 2, 5: 5, 9: 6}[resumed]
