"""Workers whose copies of the shards differ must not train together: each would go by an order of its own."""

from pathlib import Path

import pytest

from tests.support.processes import run_in_processes
from tests.support.training.runs import GPT, events, recipe_of, run_job, write_text_shards


def _run_on_own_copies(folder: str) -> None:
    import torch

    rank = torch.distributed.get_rank()
    own = recipe_of(Path(folder) / f"node-{rank}", GPT, "run", validation=None)
    run_job(own.model_copy(update={"run": own.run.model_copy(update={"dir": str(Path(folder) / "runs")})}))


def test_workers_that_see_different_shards_stop_and_name_both(tmp_path: Path) -> None:
    for rank, documents in enumerate((120, 123)):
        write_text_shards(tmp_path / f"node-{rank}", documents)
    with pytest.raises(AssertionError, match=r"different train data: rank 0 .* has 120 samples .*, rank 1 .* 123"):
        run_in_processes(_run_on_own_copies, 2, tmp_path / "store", str(tmp_path))
    recipe = recipe_of(tmp_path, GPT, "run")
    assert all(fault["final"] and fault["exit_code"] == 2 for fault in events(recipe, "fault"))
    assert not events(recipe, "finished")
