"""A writer that is killed anywhere in a commit leaves the old newest checkpoint or the new one, whole."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.syscalls import kill_after, kill_at_system_call
from tests.support.training.small_commits import NEW, OLD, check_whole, commit, header, share_of_rank, start_over
from trainer.checkpoint.commit import Commit
from trainer.checkpoint.folder_store import FolderStore
from trainer.checkpoint.rank_receipts import Receipts
from trainer.checkpoint.store_protocol import SaveId


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_at_every_system_call_of_either_of_two_ranks_a_whole_checkpoint_remains(
    tmp_path: Path, victim: int
) -> None:
    """When one rank dies the other is killed as well, as the end of an attempt does it."""
    start_over(tmp_path)
    number, found, calls = 0, set(), 1
    while number <= calls:
        number += 1
        start_over(tmp_path)
        other = _fork_commit(tmp_path, 1 - victim, 2)
        entered = kill_at_system_call(lambda: commit(tmp_path, NEW, victim, 2), number)
        if entered < number:  # it came to its end: wait for the other
            os.waitpid(other, 0)
        else:
            calls = max(calls, entered + 1)
            time.sleep(random.Random(number).random() * 0.002)
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
        found.add(check_whole(tmp_path))
    assert number > 40
    assert found == {OLD, NEW}


def _fork_commit(root: Path, rank: int, ranks: int) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            commit(root, NEW, rank, ranks)
            code = 0
        finally:
            os._exit(code)
    return child


def _kill_at_random_instants(root: Path, times: int) -> set[int]:
    rng, found, span_s, done = random.Random(7), set[int](), max(_commit_s(root) for _ in range(5)), 0
    while done < times or len(found) < 2:  # how long a commit takes changes with the machine's load
        done += 1
        start_over(root)
        kill_after(lambda: commit(root, NEW), rng.random() * span_s)
        found.add(check_whole(root))
    return found


def _commit_s(root: Path) -> float:
    """How long a forked commit takes that nobody kills."""
    start_over(root)
    started = time.monotonic()
    os.waitpid(_fork_commit(root, 0, 1), 0)
    return time.monotonic() - started


def test_killed_at_random_instants_a_whole_checkpoint_remains(tmp_path: Path) -> None:
    assert _kill_at_random_instants(tmp_path, 40) == {OLD, NEW}


@pytest.mark.long
@pytest.mark.slow
def test_killed_at_a_thousand_random_instants_a_whole_checkpoint_remains(tmp_path: Path) -> None:
    assert _kill_at_random_instants(tmp_path, 1000) == {OLD, NEW}


def test_a_rank_of_an_older_attempt_cannot_hand_its_part_to_a_newer_one(tmp_path: Path) -> None:
    stale, save = SaveId(1, 1, NEW), SaveId(2, 1, NEW)
    for each, rank in ((stale, 1), (save, 0)):
        acts = Commit(FolderStore(tmp_path), Receipts(tmp_path, each), each, rank=rank, ranks=2)
        acts.store_share(share_of_rank(NEW, rank, 2))
    given_up = threading.Event()
    given_up.set()  # or it would wait for rank 1 of its own attempt
    acts = Commit(FolderStore(tmp_path), Receipts(tmp_path, save), save, rank=0, ranks=2, given_up=given_up.is_set)
    with pytest.raises(Exception, match="another rank failed"):
        acts.publish(header(NEW))
    assert FolderStore(tmp_path).steps() == []


def test_two_ranks_commit_again_and_again_without_getting_in_each_others_way(tmp_path: Path) -> None:
    """Rank 0 removes the receipts as soon as it has seen the last: no rank may touch them after."""
    for step in range(1, 101):
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(commit, tmp_path, step, rank, 2) for rank in (0, 1)]:
                done.result()
    assert check_whole(tmp_path) == 100
