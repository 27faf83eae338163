"""An attempt that was only stopped, not dead, goes on while the next one trains: it changes nothing any more."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from cluster.run.ledger import Ledger
from configs.errors import CheckpointError, SupersededError
from tests.support.ledger_events import event
from tests.support.syscalls import interrupt_at_system_call, kill_at_system_call
from tests.support.training.small_commits import KEPT, NEW, OLD, check_whole, header, share_of_rank
from trainer.checkpoint.commit import Commit
from trainer.checkpoint.folder_store import FolderStore
from trainer.checkpoint.rank_receipts import Receipts, clean_receipts
from trainer.checkpoint.retention import steps_to_remove
from trainer.checkpoint.store_protocol import SaveId, read_manifest


class Run:
    """Checkpoints and a ledger, with a rank 0 that commits as CheckpointWriter does."""

    def __init__(self, folder: Path) -> None:
        self.root, self.ledger = folder / "checkpoints", Ledger(folder / "ledger.jsonl")
        self.root.mkdir(parents=True)
        self.store = FolderStore(self.root)

    def acts(self, attempt: int, step: int, rank: int = 0, ranks: int = 1) -> Commit:
        save = SaveId(attempt, 1, step)
        superseded: Callable[[], bool] = lambda: self.ledger.attempts() > attempt  # noqa: E731
        receipts = Receipts(self.root, save)
        return Commit(self.store, receipts, save, rank=rank, ranks=ranks, superseded=superseded)

    def begin(self) -> list[int]:
        """A new attempt; the steps that it finds."""
        self.ledger.append(event("attempt_started"))
        self.store.clean()
        clean_receipts(self.root)
        return self.store.steps()

    def commit(self, attempt: int, step: int) -> None:
        acts = self.acts(attempt, step)
        stored, file = acts.store_share(share_of_rank(step, 0, 1))
        acts.publish(header(step, attempt))
        acts.read_back(stored, file)
        acts.await_read_back()
        acts.check_current()
        for old in steps_to_remove([found for found in self.store.steps() if found <= step], {}, KEPT):
            self.store.remove(old)


def _until_superseded(run: Run) -> None:
    with suppress(CheckpointError, OSError):
        run.commit(1, NEW)


def _begin(run: Run, seen: list[int], _: int) -> None:
    seen += run.begin()


@pytest.mark.slow
def test_stopped_at_any_system_call_of_a_commit_it_leaves_the_next_attempts_checkpoints_alone(tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "undisturbed")
    undisturbed.begin()
    undisturbed.commit(1, OLD)
    calls = kill_at_system_call(partial(undisturbed.commit, 1, NEW), None)
    newest = set()
    for number in range(1, calls + 1):
        run = Run(tmp_path / str(number))
        run.begin()
        run.commit(1, OLD)
        seen: list[int] = []
        interrupt_at_system_call(partial(_until_superseded, run), number, partial(_begin, run, seen))
        if seen:  # its threads did not make fewer calls this time
            assert run.store.steps()[-1] == seen[-1]
            assert set(run.store.steps()) <= set(seen)
            assert check_whole(run.root) == seen[-1]
            newest.add(seen[-1])
            run.commit(2, seen[-1] + 5)
            assert read_manifest(run.store.at(seen[-1] + 5)).attempt == 2
            assert check_whole(run.root) == seen[-1] + 5
    assert newest == {OLD, NEW}


def test_a_stale_rank_that_makes_its_staging_anew_cannot_get_half_a_checkpoint_published(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin()
    run.commit(1, OLD)
    leader, other = run.acts(1, NEW, 0, 2), run.acts(1, NEW, 1, 2)
    leader.store_share(share_of_rank(NEW, 0, 2))
    with ThreadPoolExecutor(1) as pool:
        published = pool.submit(leader.publish, header(NEW))
        waits_for_rank_1 = run.root / ".receipts-1-1-00000010" / "stored-00001.json"
        time.sleep(0.1)  # it has read its own receipt, and waits
        assert not waits_for_rank_1.exists()
        run.begin()
        other.store_share(share_of_rank(NEW, 1, 2))
        with pytest.raises(SupersededError):
            published.result()
    assert run.store.steps() == [OLD]


def test_a_step_that_a_superseded_attempt_published_gives_way_and_no_other_does(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for attempt, standing in ((2, 2), (1, 2), (2, 2), (3, 3)):
        acts = run.acts(attempt, NEW)
        _, file = acts.store_share(share_of_rank(NEW, 0, 1))
        acts.publish(header(NEW, attempt))
        file.close()
        assert read_manifest(run.store.at(NEW)).attempt == standing
        clean_receipts(run.root)
        assert check_whole(run.root) == NEW
