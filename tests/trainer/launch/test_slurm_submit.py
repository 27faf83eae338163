"""What `stoker submit` makes of a recipe, its overrides and the tasks of an array; nothing is queued here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.errors import RecipeError, ResourceError
from configs.load import dump_recipe
from tests.support.training.runs import GPT, recipe_of, write_text_shards
from trainer.launch.slurm_submit import Submission, plan_submission


def plan(folder: Path, *overrides: str, each: Sequence[Sequence[str]] = (), **options: Any) -> Submission:
    write_text_shards(folder)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe_of(folder, GPT, "run", workers={"count": 1})))
    return plan_submission(folder / "recipe.yaml", overrides, each, options, folder / "absent.yaml")


@pytest.mark.parametrize("name", ["exp-{task}", "{task}-exp", '"2026-{task}"'])
def test_each_task_has_the_run_folder_that_its_script_names(tmp_path: Path, name: str) -> None:
    submission = plan(tmp_path, f"run.name={name}", array="3-4")
    names = [recipe.run.name for recipe in submission.runs.values()]
    assert names == [name.strip('"').replace("{task}", str(task)) for task in (3, 4)]
    folder = next(line for line in submission.script.splitlines() if line.startswith("run_folder="))
    before, after = name.strip('"').split("{task}")
    assert folder.endswith(f'/runs/{before}"$SLURM_ARRAY_TASK_ID"{after}')


def test_a_name_in_quotes_is_the_name_without_them(tmp_path: Path) -> None:
    submission = plan(tmp_path, 'run.name="2024"')
    assert [recipe.run.name for recipe in submission.runs.values()] == ["2024"]
    assert f"run_folder={tmp_path / 'runs' / '2024'}\n" in submission.script


def test_every_task_has_room_in_the_one_job_that_all_share(tmp_path: Path) -> None:
    each = [["workers.count=1"], ["workers.count=4"]]
    assert "--cpus-per-task=4\n" in plan(tmp_path, each=each).script
    assert "--cpus-per-task=4\n" in plan(tmp_path, "workers.count={task}", array="1-4").script
    with pytest.raises(ResourceError, match=r"workers\.count 4 .* does not fit"):
        plan(tmp_path, each=each, cpus_per_node=2)


def test_what_one_script_cannot_do_for_several_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="slurm: of task 1 is another one"):
        plan(tmp_path, each=[["slurm.partition=a"], ["slurm.partition=b"]])
    with pytest.raises(RecipeError, match=r"--each has run\.name"):
        plan(tmp_path, each=[["run.name=a"], ["run.name=b"]])
    with pytest.raises(RecipeError, match="would share a run folder"):
        plan(tmp_path, "run.name=same", array="0-1")
