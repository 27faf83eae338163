"""Who may ask the workers to leave at a step boundary, and whose word counts."""

from pathlib import Path

import pytest

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from tests.support.training.runs import GPT, recipe_of, write_text_shards
from trainer.rank.activity import Activity
from trainer.rank.context import Context
from trainer.rank.ranks import Ranks
from trainer.training.outcome import Leave, LeaveRequests


class _Supervisor:
    """The line to a supervisor that wants the workers to leave."""

    def __init__(self, leave: str | None) -> None:
        self.leave = leave

    def report_position(self, phase: str, step: int | None = None) -> None: ...

    def report(self, **facts: object) -> None: ...


def _context(folder: Path, wish: str | None, rank: int = 0, grow_within_s: float = 1e6) -> Context:
    write_text_shards(folder)
    workers = {"count": "1..2", "grow_within_s": grow_within_s}
    recipe = recipe_of(folder, GPT, "r", workers=workers, checkpoint={"every_steps": 4})
    run = RunFolder.of(recipe)
    run.make()
    return Context(recipe, run, Ledger(run.ledger), Ranks(rank, 2), 1, "", Activity(_Supervisor(wish)))


@pytest.mark.parametrize(("wish", "leave"), [(None, Leave.STAY), ("preemption", Leave.PREEMPTION)])
def test_the_supervisors_wish_counts_at_once_and_a_signal_before_it(
    tmp_path: Path, wish: str | None, leave: Leave
) -> None:
    context = _context(tmp_path, wish)
    requests = LeaveRequests(context)
    assert requests.at(3) is leave
    context.folder.stop_request.touch()
    assert requests.at(3) is Leave.SIGNAL


def test_more_workers_wait_for_a_checkpoint_or_for_as_long_as_the_recipe_says(tmp_path: Path) -> None:
    requests = LeaveRequests(_context(tmp_path, "resize"))
    assert [requests.at(step) for step in (2, 3, 4)] == [Leave.STAY, Leave.STAY, Leave.RESIZE]
    assert LeaveRequests(_context(tmp_path, "resize", grow_within_s=0)).at(3) is Leave.RESIZE


def test_only_rank_0_is_asked(tmp_path: Path) -> None:
    context = _context(tmp_path, "preemption", rank=1)
    context.folder.stop_request.touch()
    assert LeaveRequests(context).at(4) is Leave.STAY
