"""A checkpoint is whole and valid, or it is named, put aside, and the one before it is used."""

import json
import math
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.errors import CheckpointError, DamagedCheckpointError
from configs.recipe import Checkpoint
from tests.support.processes import run_in_processes
from tests.support.training.runs import RESNET, recipe_of, run_folder_of, train_in_processes, write_image_shards
from tests.support.training.small_commits import ALONE, all_extents
from trainer.checkpoint.block_files import BLOCK_BYTES
from trainer.checkpoint.folder_store import FolderStore, LocalCheckpoint
from trainer.checkpoint.manifest import MANIFEST, Manifest
from trainer.checkpoint.reader import CheckpointReader, open_newest, verify
from trainer.checkpoint.retention import steps_to_remove
from trainer.checkpoint.store_protocol import read_manifest
from trainer.rank.ranks import Ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a finished run, of steps 5 and 10, written by two workers."""
    folder = tmp_path_factory.mktemp("trained")
    write_image_shards(folder)
    recipe = recipe_of(folder, RESNET, "run", zero={"stage": 2})
    train_in_processes(folder / "store", 2, [(recipe, None)])
    return run_folder_of(recipe) / "checkpoints"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))


def newest_step(run: Path, ranks: Ranks = ALONE) -> tuple[int | None, list[str]]:
    """The step of the checkpoint that a rank which wants everything gets, and what it is told."""
    told: list[str] = []
    accepted: list[Manifest] = []
    reader = open_newest(FolderStore(run), ranks, lambda: all_extents(accepted[-1]), accepted.append, told.append)
    if reader is not None:
        reader.close()
    return (reader.manifest.step if reader else None), told


def load(folder: Path) -> None:
    """Read and check all that a load on one worker does."""
    manifest = read_manifest(LocalCheckpoint(folder))
    with CheckpointReader(LocalCheckpoint(folder), manifest) as reader:
        reader.fetch(all_extents(manifest), [stored.name for stored in manifest.files])


def test_the_newest_of_two_valid_checkpoints_is_found(run: Path) -> None:
    assert newest_step(run) == (10, [])


def test_a_load_and_a_verification_find_every_flipped_bit_in_every_file(run: Path) -> None:
    folder, rng = run / "step-00000010", random.Random(7)
    assert len(list(folder.iterdir())) == 3
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        header_bytes = 8 + int.from_bytes(original[:8], "little") if path.suffix == ".safetensors" else 0
        places = [rng.randrange(len(original)) for _ in range(100)]
        places += [rng.randrange(header_bytes) for _ in range(50) if header_bytes] + [0, len(original) - 1]
        for place in places:
            content = bytearray(original)
            content[place] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            for check in (load, lambda folder: verify(LocalCheckpoint(folder))):
                with pytest.raises(CheckpointError, match=path.name):
                    check(folder)
        path.write_bytes(original)
    load(folder)


@pytest.mark.parametrize("damage", ["flip", "truncate", "lengthen", "remove", "no manifest", "folder"])
def test_a_damaged_newest_is_named_and_put_aside_and_the_one_before_is_used(run: Path, damage: str) -> None:
    victim = sorted((run / "step-00000010").glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 4
            victim.write_bytes(content)
        case "truncate":
            victim.write_bytes(content[:-1])
        case "lengthen":
            victim.write_bytes(content + b"x")
        case "remove":
            victim.unlink()
        case "no manifest":
            (run / "step-00000010" / MANIFEST).unlink()
        case "folder":
            victim.unlink()
            victim.mkdir()
    step, told = newest_step(run)
    assert step == 5
    assert (MANIFEST if damage == "no manifest" else victim.name) in told[0]
    assert (run / "damaged-step-00000010").is_dir()
    assert FolderStore(run).steps() == [5]


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path(self.mark),)

    def __init__(self, mark: str) -> None:
        self.mark = mark


def test_a_pickle_named_like_a_shard_is_refused_and_not_executed(run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = pickle.dumps(_Bomb(str(mark)))
    for path in (run / "step-00000010").iterdir():
        content = bomb + bytes(max(path.stat().st_size - len(bomb), 0))  # of the right size, as far as that goes
        path.write_bytes(content)
        assert newest_step(run)[0] == 5
        assert not mark.exists()
        break
    pickle.loads(bomb)  # noqa: S301  # the trap works
    assert mark.exists()


def _newest_of_two_ranks(run: Path) -> tuple[int | None, list[str]]:
    return newest_step(run, Ranks.connect())


def test_damage_that_another_rank_finds_is_named_too(run: Path, tmp_path: Path) -> None:
    victim = run / "step-00000010" / "rank-00001-of-00002.safetensors"
    victim.write_bytes(victim.read_bytes()[:-8])
    (step, told), (other, _) = run_in_processes(_newest_of_two_ranks, 2, tmp_path / "store", run)
    assert step == other == 5
    assert victim.name in told[0]


def test_a_checkpoint_of_another_format_is_left_alone(run: Path) -> None:
    path = run / "step-00000010" / MANIFEST
    path.write_bytes(replace(read_manifest(LocalCheckpoint(path.parent)), format=999).encode())
    with pytest.raises(CheckpointError, match="has format 999"):
        newest_step(run)
    assert FolderStore(run).steps() == [5, 10]


def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over(run: Path) -> None:
    for step in ("step-00000005", "step-00000010"):
        (run / step / MANIFEST).write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="every checkpoint"):
            newest_step(run)


def test_what_a_crash_left_half_written_is_removed_and_never_taken_for_a_checkpoint(run: Path) -> None:
    shutil.copytree(run / "step-00000010", run / ".staging-3-1-00000015")
    shutil.copytree(run / "step-00000010", run / ".trash-step-00000004")
    assert FolderStore(run).steps() == [5, 10]
    FolderStore(run).clean()
    assert sorted(path.name for path in run.iterdir()) == ["step-00000005", "step-00000010"]


def test_the_files_are_safetensors_that_anyone_can_read(run: Path) -> None:
    folder = LocalCheckpoint(run / "step-00000010")
    manifest = verify(folder)
    stored = {fragment.key: fragment for fragment in manifest.fragments}
    with CheckpointReader(folder, manifest) as ours:
        seen = set()
        for file in manifest.files:
            with safe_open(run / "step-00000010" / file.name, framework="pt") as theirs:
                for key in theirs.keys():  # noqa: SIM118  # not iterable
                    if key.startswith("buffer/"):
                        assert torch.equal(theirs.get_tensor(key), ours.buffers()[key.removeprefix("buffer/")])
                    else:
                        fragment = stored[key]
                        read = ours.read(fragment.kind, fragment.parameter)
                        assert read is not None
                        part = read(fragment.start, fragment.start + fragment.count)
                        assert torch.equal(theirs.get_tensor(key), part)
                    seen.add(key)
    assert seen == stored.keys() | {f"buffer/{name}" for name in manifest.buffers}


def test_the_manifest_tells_place_groups_schedule_and_validation(run: Path) -> None:
    manifest = read_manifest(LocalCheckpoint(run / "step-00000010"))
    assert (manifest.step, manifest.samples, manifest.workers, manifest.zero_stage) == (10, 80, 2, 2)
    groups = manifest.scalars["groups"]
    assert {name: (g["weight_decay"], g["step"], g["betas"]) for name, g in groups.items()} == {
        "decay": (0.1, 10.0, [0.9, 0.95]),
        "no_decay": (0.0, 10.0, [0.9, 0.95]),
    }
    assert manifest.schedule["step"] == 10
    assert manifest.recipe["optimizer.lr"] == 0.01
    assert manifest.metrics.keys() >= {"val_loss", "val_accuracy"}
    sizes = [stored.bytes for stored in manifest.files]
    assert max(sizes) < 1.1 * min(sizes)  # buffers are dealt out too


def test_a_rank_reads_only_the_blocks_it_needs(run: Path) -> None:
    """Damage outside of what is asked for is not seen; within, it is."""
    folder = LocalCheckpoint(run / "step-00000010")
    manifest = read_manifest(folder)
    victim = run / "step-00000010" / manifest.files[0].name
    assert victim.stat().st_size < BLOCK_BYTES  # the whole file is one block
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    of_the_other_file = [f for f in manifest.fragments if f.file == manifest.files[1].name and f.kind == "master"]
    fragment = of_the_other_file[-1]
    with CheckpointReader(folder, replace(manifest, buffers={})) as reader:
        reader.fetch([(fragment.parameter, fragment.start, fragment.start + fragment.count)])
    with (
        pytest.raises(DamagedCheckpointError, match=victim.name),
        CheckpointReader(folder, replace(manifest, buffers={})) as reader,
    ):
        reader.fetch([], [victim.name])


def test_retention_keeps_the_last_the_multiples_and_the_best() -> None:
    figures = {step: {"val_loss": abs(step - 42) / 10, "val_accuracy": step / 100} for step in range(10, 110, 10)}
    settings = Checkpoint.model_validate(
        {"every_steps": 10, "keep_last": 2, "keep_every_steps": 50, "keep_best": {"metric": "val_loss", "count": 2}}
    )
    assert steps_to_remove(range(10, 110, 10), figures, settings) == [10, 20, 30, 60, 70, 80]
    by_accuracy = Checkpoint.model_validate(
        {"every_steps": 10, "keep_last": 2, "keep_best": {"metric": "val_accuracy"}}
    )
    assert steps_to_remove(range(10, 110, 10), figures, by_accuracy) == list(range(10, 90, 10))
    assert steps_to_remove([10, 20], {}, settings) == []
    for_nan = {**figures, 20: {"val_loss": math.nan}}
    assert steps_to_remove(range(10, 110, 10), for_nan, settings) == [10, 20, 30, 60, 70, 80]


def test_a_checkpoint_holds_no_pickle(trained: Path) -> None:
    assert {path.suffix for path in (trained / "step-00000010").iterdir()} == {".safetensors", ".json"}
    json.loads((trained / "step-00000010" / MANIFEST).read_bytes())
