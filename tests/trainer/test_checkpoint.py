"""A checkpoint is whole and valid, or it is named, put aside, and the one before it is used."""

import json
import os
import random
import resource
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import CheckpointError
from configs.recipe import Recipe
from tests.processes import run_in_processes
from tests.trainer.runs import (
    GPT,
    RESNET,
    recipe_of,
    run_folder_of,
    run_job,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from trainer.checkpoint_format import MANIFEST, Manifest
from trainer.checkpoint_reader import open_newest, verify
from trainer.checkpoint_store import read_manifest
from trainer.folder_store import FolderStore
from trainer.ledger import read_json_lines
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder

ALONE = Ranks(0, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run with checkpoints of steps 5 and 10, written by two workers."""
    folder = tmp_path_factory.mktemp("trained")
    write_image_shards(folder)
    recipe = recipe_of(folder, RESNET, "run", zero={"stage": 2})
    train_in_processes(folder / "store", 2, [(recipe, None)])
    return run_folder_of(recipe)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def newest_step(run: RunFolder) -> tuple[int | None, list[str]]:
    told: list[str] = []
    manifest = newest_valid(run, ALONE, told.append)
    return (manifest.step if manifest else None), told


def test_the_newest_of_two_valid_checkpoints_is_found(run: RunFolder) -> None:
    assert newest_step(run) == (10, [])


def test_every_flipped_bit_is_found_in_every_file(run: RunFolder) -> None:
    folder, rng = run.checkpoint(10), random.Random(7)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for _ in range(60):
            content = bytearray(original)
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=path.name):
                for stored in read_manifest(folder).files:
                    verify_file(folder, stored)
        path.write_bytes(original)
    check_coverage(read_manifest(folder))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest"])
def test_a_damaged_newest_is_named_and_put_aside_and_the_one_before_is_used(run: RunFolder, damage: str) -> None:
    victim = sorted(run.checkpoint(10).glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 4
            victim.write_bytes(content)
        case "truncate":
            victim.write_bytes(content[:-1])
        case "remove":
            victim.unlink()
        case "no manifest":
            (run.checkpoint(10) / "manifest.json").unlink()
    step, told = newest_step(run)
    assert step == 5
    assert ("manifest.json" if damage == "no manifest" else victim.name) in told[0]
    assert (run.checkpoints / "damaged-step-00000010").is_dir()
    assert run.published_steps() == [5]


def _newest_of_two_ranks(root: Path) -> tuple[int | None, list[str]]:
    told: list[str] = []
    manifest = newest_valid(RunFolder(root), Ranks.connect(), told.append)
    return (manifest.step if manifest else None), told


def test_damage_that_another_rank_finds_is_named_too(run: RunFolder, tmp_path: Path) -> None:
    victim = run.checkpoint(10) / "rank-00001-of-00002.safetensors"  # rank 1 verifies it, rank 0 tells
    victim.write_bytes(victim.read_bytes()[:-8])
    (step, told), (other, _) = run_in_processes(_newest_of_two_ranks, 2, tmp_path / "store", run.root)
    assert step == other == 5
    assert victim.name in told[0]


def test_a_checkpoint_of_another_format_is_left_alone(run: RunFolder) -> None:
    manifest = read_manifest(run.checkpoint(10))
    (run.checkpoint(10) / "manifest.json").write_bytes(replace(manifest, format=999).encode())
    with pytest.raises(CheckpointError, match="has format 999"):
        newest_step(run)
    assert run.published_steps() == [5, 10]


def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over(run: RunFolder) -> None:
    for step in run.published_steps():
        (run.checkpoint(step) / "manifest.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="every checkpoint"):
            newest_step(run)


def test_what_a_crash_left_half_written_is_removed_and_never_taken_for_a_checkpoint(run: RunFolder) -> None:
    shutil.copytree(run.checkpoint(10), run.checkpoints / ".staging-3-00000015")
    shutil.copytree(run.checkpoint(10), run.checkpoints / ".trash-step-00000004")
    assert run.published_steps() == [5, 10]
    clean_staging(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000005", "step-00000010"]


def _train_with_small_files(recipe: Recipe, largest_bytes: int) -> str:
    """Train while the kernel refuses files above a size, as a full disk would; lifted at step 8."""
    from trainer.run_state import Attempt

    real_save, soft_before = Attempt.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self: Attempt, step: int) -> None:
        if self.writer._thread:
            self.writer._thread.join()
        limit = largest_bytes if step < 8 else soft_before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft_before[1]))
        real_save(self, step)

    Attempt.save = save  # type: ignore[method-assign]  # the only way to a fault at a known step
    run_job(recipe)
    return "done"


def test_a_checkpoint_that_does_not_fit_on_the_disk_costs_no_training(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    recipe = recipe_of(tmp_path, GPT, "full", checkpoint={"every_steps": 4}, validation=None)
    assert run_in_processes(_train_with_small_files, 2, tmp_path / "store", recipe, 100_000) == ["done", "done"]
    folder = RunFolder.of(recipe)
    assert folder.published_steps() == [8, 10]
    warnings = [e["message"] for e in read_json_lines(folder.ledger) if e["event"] == "warning"]
    assert any("checkpoint of step 4 was not written" in message for message in warnings)
    assert not list(folder.checkpoints.glob(".staging*"))
    assert len(read_json_lines(folder.metrics)) == 10


def _train_on_a_full_disk(recipe: Recipe) -> str:
    """Train on a file system of which rank 0 takes all the room before step 4, and gives it back before step 8."""
    from trainer.run_state import Attempt

    real_save, filler = Attempt.save, RunFolder.of(recipe).root / "filler"

    def save(self: Attempt, step: int) -> None:
        if self.writer._thread:
            self.writer._thread.join()
        if self.ranks.leads and step < 8:
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        elif self.ranks.leads:
            filler.unlink(missing_ok=True)
        self.ranks.sum([0.0])
        real_save(self, step)

    Attempt.save = save  # type: ignore[method-assign]  # the only way to a fault at a known step
    run_job(recipe)
    return "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_training_goes_on_while_the_disk_is_full_and_its_history_is_complete(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    recipe = recipe_of(tmp_path, GPT, "full", checkpoint={"every_steps": 2}, validation=None)
    mount = Path(recipe.run.dir)
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    try:
        assert run_in_processes(_train_on_a_full_disk, 2, tmp_path / "store", recipe) == ["done", "done"]
        folder = RunFolder.of(recipe)
        assert folder.published_steps() == [8, 10]
        assert [line["step"] for line in read_json_lines(folder.metrics)] == list(range(1, 11))
        assert [event["event"] for event in read_json_lines(folder.ledger)][-1] == "finished"
        assert not list(folder.checkpoints.glob(".staging*"))
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_checkpoint_holds_no_pickle(trained: Path) -> None:
    folder = RunFolder(trained).checkpoint(10)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    for path in folder.glob("*.safetensors"):
        header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
        json.loads(path.read_bytes()[8 : 8 + header_bytes])
