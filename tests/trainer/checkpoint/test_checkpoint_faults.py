"""A checkpoint that cannot be written costs no training: the one before is kept, and the run tells loudly."""

import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.run.ledger import read_json_lines
from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.runs import GPT, events, history, recipe_of, run_job, write_text_shards
from trainer.checkpoint.folder_store import FolderStore, step_name
from trainer.checkpoint.reader import verify

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


def _train_with_small_files(recipe: Recipe, largest_bytes: int) -> str:
    """Train while the kernel refuses files above a size, as a full disk would; lifted at step 8."""
    from trainer.training.attempt import Attempt

    real_save, soft_before = Attempt.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self: Attempt, step: int, **settings: bool) -> bool:
        self.writer._join()
        limit = largest_bytes if step < 8 else soft_before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft_before[1]))
        return real_save(self, step, **settings)

    Attempt.save = save  # type: ignore[method-assign]  # the only way to a fault at a known step
    run_job(recipe)
    return "done"


def test_a_checkpoint_that_does_not_fit_on_the_disk_costs_no_training(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    recipe = recipe_of(tmp_path, GPT, "full", checkpoint={"every_steps": 4}, validation=None)
    assert run_in_processes(_train_with_small_files, 2, tmp_path / "store", recipe, 100_000) == ["done", "done"]
    folder = RunFolder.of(recipe)
    assert FolderStore(folder.checkpoints).steps() == [8, 10]
    warnings = [e["message"] for e in read_json_lines(folder.ledger) if e["event"] == "warning"]
    assert any("checkpoint of step 4 was not written" in message for message in warnings)
    assert not list(folder.checkpoints.glob(".[sr]*"))
    assert len(read_json_lines(folder.metrics)) == 10


def test_saves_that_fail_too_often_in_a_row_end_the_run_with_the_cause(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    often = {"every_steps": 2, "max_failed_saves": 2, "background": False}
    recipe = recipe_of(tmp_path, GPT, "hopeless", checkpoint=often, validation=None)
    with pytest.raises(AssertionError, match="CheckpointError"):
        run_in_processes(_train_with_small_files, 2, tmp_path / "store", recipe, 100_000)
    fault = events(recipe, "fault")[0]
    assert fault["final"]
    assert fault["message"].startswith("2 checkpoints in a row failed (checkpoint.max_failed_saves)")
    assert "step 4 was not written" in fault["message"]
    assert "File too large" in fault["message"]


def _change_the_last_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def _train_on_a_bad_medium(recipe: Recipe, changes: bool, unreadable: bool) -> str:
    """The first checkpoint of step 10 is changed, or cannot be read for a moment, or both, after it was published."""
    from trainer.checkpoint import commit

    real_read, real_look, now = commit.Commit.read_back, commit._first_bad_block, list[int]()

    def read_back(self: commit.Commit, stored: Any, file: Any) -> None:
        now.append(self._save.step)
        if changes and self._save.step == 10 and now.count(10) == 1:
            _change_the_last_byte(RunFolder.of(recipe).checkpoints / step_name(10) / stored.name)
        real_read(self, stored, file)

    def look(stored: Any, file: Any) -> int | None:
        if unreadable and now.count(10) == 1:
            raise OSError(5, "Input/output error")
        return real_look(stored, file)

    # The only way to a fault between publishing and reading back. The byte is changed on the medium.
    commit.Commit.read_back = read_back  # type: ignore[method-assign]
    commit._first_bad_block = look
    run_job(recipe)
    return "done"


@pytest.mark.parametrize(
    ("workers", "changes", "unreadable"), [(1, True, False), (2, True, False), (1, False, True), (2, True, True)]
)
def test_a_last_checkpoint_that_the_medium_changed_is_put_aside_and_written_again_a_whole_one_stays(
    tmp_path: Path, workers: int, changes: bool, unreadable: bool
) -> None:
    write_text_shards(tmp_path)
    checkpoint = {"every_steps": 5, "keep_last": 1}
    recipe = recipe_of(tmp_path, GPT, "r", checkpoint=checkpoint, validation=None, workers={"count": workers})
    run_in_processes(_train_on_a_bad_medium, workers, tmp_path / "store", recipe, changes, unreadable)
    store = FolderStore(RunFolder.of(recipe).checkpoints)
    assert store.steps() == [10]
    assert verify(store.at(10)).step == 10
    assert [path.name for path in store._root.glob("damaged-*")] == ["damaged-step-00000010"] * changes
    assert not list(store._root.glob(".[sr]*"))


def _train_until_told_to_stop_at_a_save_that_fails(recipe: Recipe) -> str:
    from trainer.training.attempt import Attempt

    real_save, soft_before = Attempt.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self: Attempt, step: int, **settings: bool) -> bool:
        first = not self.context.folder.stop_request.exists()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if first else soft_before[0], soft_before[1]))
        saved = real_save(self, step, **settings)
        if self.ranks.leads:
            self.context.folder.stop_request.touch()
        return saved

    Attempt.save = save  # type: ignore[method-assign]  # the only way to a fault at a known step
    run_job(recipe)
    return "done"


def test_a_run_stopped_right_after_a_save_that_failed_leaves_with_a_checkpoint(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    checkpoint = {"every_steps": 4, "background": False}
    recipe = recipe_of(tmp_path, GPT, "r", checkpoint=checkpoint, validation=None, workers={"count": 1})
    run_in_processes(_train_until_told_to_stop_at_a_save_that_fails, 1, tmp_path / "store", recipe)
    assert [event["step"] for event in events(recipe, "stopped")] == [4]
    assert FolderStore(RunFolder.of(recipe).checkpoints).steps() == [4]


def _train_on_a_full_disk(recipe: Recipe) -> str:
    """Train on a file system of which rank 0 takes all the room before step 4, and gives it back before step 8."""
    from trainer.training.attempt import Attempt

    real_save, filler = Attempt.save, RunFolder.of(recipe).root / "filler"

    def save(self: Attempt, step: int, **settings: bool) -> bool:
        self.writer._join()
        if self.ranks.leads and step < 8:
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        elif self.ranks.leads:
            filler.unlink(missing_ok=True)
        self.ranks.sum([0.0])
        return real_save(self, step, **settings)

    Attempt.save = save  # type: ignore[method-assign]  # the only way to a fault at a known step
    run_job(recipe)
    return "done"


@root_only
def test_training_goes_on_while_the_disk_is_full_and_its_history_is_complete(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    recipe = recipe_of(tmp_path, GPT, "full", checkpoint={"every_steps": 2}, validation=None)
    mount = Path(recipe.run.dir)
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    try:
        assert run_in_processes(_train_on_a_full_disk, 2, tmp_path / "store", recipe) == ["done", "done"]
        folder = RunFolder.of(recipe)
        assert FolderStore(folder.checkpoints).steps() == [8, 10]
        assert [line["step"] for line in read_json_lines(folder.metrics)] == list(range(1, 11))
        assert [event["event"] for event in read_json_lines(folder.ledger)][-1] == "finished"
        assert not list(folder.checkpoints.glob(".[sr]*"))
    finally:
        subprocess.run(["umount", mount], check=True)


def _train_on_a_disk_turned_read_only(recipe: Recipe, mount: str) -> str:
    """The checkpoints' file system is read-only from before step 4 to after step 6."""
    from trainer.training.attempt import Attempt

    real_save = Attempt.save

    def save(self: Attempt, step: int, **settings: bool) -> bool:
        self.writer._join()
        self.ranks.sum([0.0])
        if self.ranks.leads and step in (4, 8):
            mode = "ro" if step == 4 else "rw"
            subprocess.run(["mount", "-o", f"remount,{mode}", mount], check=True)
        self.ranks.sum([0.0])
        return real_save(self, step, **settings)

    Attempt.save = save  # type: ignore[method-assign]  # the only way to a fault at a known step
    run_job(recipe)
    return "done"


@root_only
def test_training_goes_on_while_the_checkpoints_file_system_is_read_only(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    mount = tmp_path / "checkpoints"
    mount.mkdir()
    settings = {"every_steps": 2, "dir": str(mount)}
    recipe = recipe_of(tmp_path, GPT, "read-only", checkpoint=settings, validation=None)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", mount], check=True)
    try:
        run_in_processes(_train_on_a_disk_turned_read_only, 2, tmp_path / "store", recipe, str(mount))
        assert FolderStore(mount / "read-only").steps() == [2, 8, 10]
        messages = [event["message"] for event in events(recipe, "warning")]
        for step in (4, 6):
            assert any(f"step {step} was not written" in m and "Read-only file system" in m for m in messages)
        assert len(history(recipe)) == 10
    finally:
        subprocess.run(["umount", mount], check=True)


def _train_with_a_failing_rank(recipe: Recipe) -> list[int]:
    """Rank 1 can store neither its part of step 4 nor a word about it. Returns the steps at which that was told."""
    from trainer.checkpoint.commit import Commit
    from trainer.training.attempt import Attempt

    real_store, real_tell, told = Commit.store_share, Attempt.tell_failed_save, list[int]()
    now = [0]

    def store_share(self: Commit, part: object) -> object:
        if self._rank == 1 and self._save.step == 4:
            raise OSError(5, "Input/output error")
        return real_store(self, part)  # type: ignore[arg-type]

    def tell(self: Attempt) -> None:
        told.append(now[0])
        real_tell(self)

    def watch(name: str) -> None:
        from trainer.metrics.reporter import Reporter

        real: Callable[..., None] = getattr(Reporter, name)

        def watched(self: Reporter, step: int, *rest: object) -> None:
            now[0] = step
            real(self, step, *rest)

        setattr(Reporter, name, watched)

    watch("stepped")
    Commit.store_share = store_share  # type: ignore[method-assign, assignment]
    Attempt.tell_failed_save = tell  # type: ignore[method-assign]
    run_job(recipe)
    return told


def test_a_writers_error_is_told_at_a_following_step_and_frees_the_other_ranks(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    recipe = recipe_of(tmp_path, GPT, "failing", checkpoint={"every_steps": 4}, validation=None)
    told = run_in_processes(_train_with_a_failing_rank, 2, tmp_path / "store", recipe)
    assert told[0] == told[1]
    assert 4 <= told[0][0] < 8
    messages = [event["message"] for event in events(recipe, "warning")]
    assert any("Input/output error" in message for message in messages)
    assert any("another rank failed" in message for message in messages)
    assert FolderStore(RunFolder.of(recipe).checkpoints).steps() == [8, 10]


def _train_with_a_slow_write(recipe: Recipe, until: int) -> str:
    """The write of step 1 ends when the save of step `until` has begun, and half a second later."""
    import threading
    import time

    from trainer.checkpoint.commit import Commit
    from trainer.training.attempt import Attempt

    real_store, real_save, begun = Commit.store_share, Attempt.save, threading.Event()

    def save(self: Attempt, step: int, *, may_skip: bool = True) -> bool:
        if step == until:
            begun.set()
        return real_save(self, step, may_skip=may_skip)

    def store_share(self: Commit, part: object) -> object:
        if self._save.step == 1:
            assert begun.wait(400)  # bounds a hang
            time.sleep(0.5)
        return real_store(self, part)  # type: ignore[arg-type]

    Commit.store_share = store_share  # type: ignore[method-assign, assignment]
    Attempt.save = save  # type: ignore[method-assign]
    run_job(recipe)
    return "done"


@pytest.mark.parametrize("rule", ["wait", "skip"])
def test_a_save_that_is_due_while_one_is_written_waits_or_is_skipped(tmp_path: Path, rule: str) -> None:
    write_text_shards(tmp_path)
    settings = {"every_steps": 1, "keep_last": 20, "when_busy": rule}
    recipe = recipe_of(tmp_path, GPT, rule, checkpoint=settings, validation=None)
    run_in_processes(_train_with_a_slow_write, 2, tmp_path / "store", recipe, 2 if rule == "wait" else 4)
    steps = FolderStore(RunFolder.of(recipe).checkpoints).steps()
    waits = {event["step"]: event["wait_s"] for event in events(recipe, "checkpoint")}
    assert waits.keys() == set(steps)
    assert all(event["copy_s"] > 0 for event in events(recipe, "checkpoint"))
    if rule == "wait":
        assert steps == list(range(1, 11))
        assert waits[2] > 0.4
        assert sum(line["checkpoint_s"] for line in history_with_clock(recipe)) > 0.4
    else:
        assert {1, 10} <= set(steps)
        assert not {2, 3} & set(steps)
        assert {event["step"] for event in events(recipe, "checkpoint_skipped")} == set(range(1, 11)) - set(steps)


def history_with_clock(recipe: Recipe) -> list[dict[str, float]]:
    return read_json_lines(RunFolder.of(recipe).metrics)
