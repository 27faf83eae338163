"""Commands on a run that stands: at its end or before it, its data or bucket gone, a checkpoint named by its path."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.run.ledger import read_json_lines
from cluster.run.run_folder import RunFolder
from configs.load import dump_recipe, load_recipe
from tests.support.training.runs import GPT, recipe_of, train_in_processes, write_text_shards
from trainer import cli
from trainer.checkpoint.object_store import open_object_store
from trainer.launch.final_summary import summarize

Stoker = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recipe.yaml`, and its run of 6 steps with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    write_text_shards(folder)
    run = {"name": "run", "dir": str(folder / "runs"), "steps": 6}
    recipe = recipe_of(folder, GPT, "run", run=run, checkpoint={"every_steps": 3}, validation={"every_steps": 3})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    train_in_processes(folder / "store", 1, [(recipe, None)])
    (folder / "runs" / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, which keeps its shards."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    text = (finished / "recipe.yaml").read_text().replace(str(finished / "runs"), str(tmp_path / "runs"))
    for path in (tmp_path / "recipe.yaml", tmp_path / "runs" / "run" / "recipe.yaml"):
        path.write_text(text)
    return tmp_path


@pytest.fixture
def stoker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Stoker]:
    """Runs a command in this process: exit code, and all that it wrote."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["stoker", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out + written.err

    return run


@pytest.mark.parametrize("stop_at", ["3", "6"])
def test_a_run_that_is_beyond_stop_at_says_where_it_is_and_starts_no_worker(
    folder: Path, stoker: Stoker, stop_at: str
) -> None:
    before = read_json_lines(folder / "runs" / "run" / "ledger.jsonl")
    options = ["run.steps=9", "schedule.kind=constant", "schedule.min_lr=0"]
    shown = load_recipe(folder / "recipe.yaml", options)
    (folder / "runs" / "run" / "recipe.yaml").write_text(dump_recipe(shown))
    code, said = stoker("train", str(folder / "recipe.yaml"), *options, "--stop-at", stop_at)
    assert code == 0, said
    assert said.splitlines()[-1].endswith(f"runs/run is at step 6, and --stop-at is {stop_at}: nothing to do")
    assert read_json_lines(folder / "runs" / "run" / "ledger.jsonl") == before


def test_a_checkpoint_is_named_by_its_path_wherever_it_lies(
    folder: Path, stoker: Stoker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "runs" / "run"
    inside = run / "checkpoints" / "step-00000003"
    whole = stoker("checkpoint", "digest", str(run), "--step", "3")
    assert whole[0] == 0
    assert whole != stoker("checkpoint", "digest", str(run))
    outside = folder / "elsewhere" / "run" / "step-00000003"
    shutil.copytree(inside, outside)
    bucket = open_object_store(f"file://{outside.parent}", os.environ)
    monkeypatch.setattr("trainer.checkpoint.object_store.open_object_store", lambda where, environment: bucket)
    monkeypatch.chdir(inside)
    for place in (f"{inside}", f"{inside}/", ".", f"{outside}/", "s3://bucket/elsewhere/run/step-00000003/"):
        assert stoker("checkpoint", "digest", place) == whole
        code, said = stoker("checkpoint", "verify", place)
        assert (code, said.strip()) == (0, "step 3: whole and valid")
    assert stoker("checkpoint", "export", f"{inside}/", str(folder / "out"))[0] == 0
    assert (folder / "out" / "config.json").exists()


def test_a_checkpoint_that_is_not_there_or_not_enough_is_a_mistake(folder: Path, stoker: Stoker) -> None:
    run = folder / "runs" / "run"
    shutil.copytree(run / "checkpoints", folder / "elsewhere")
    for arguments, expected in {
        ("verify", str(run / "checkpoints" / "step-00000099")): "has no checkpoint of step 99: choose from 3, 6",
        ("verify", str(run), "--step", "99"): "has no checkpoint of step 99: choose from 3, 6",
        (
            "digest",
            str(run / "checkpoints" / "step-00000003"),
            "--step",
            "6",
        ): "is the checkpoint of step 3, --step is 6",
        ("export", str(folder / "elsewhere" / "step-00000003"), str(folder / "out")): "give RUN_DIR --step N",
        ("verify", str(run / "checkpoints")): "is not a run folder",
    }.items():
        code, said = stoker("checkpoint", *arguments)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert expected in said


@pytest.mark.parametrize("gone", ["val", "train"])
def test_a_finished_run_is_finished_whatever_became_of_its_shards(folder: Path, stoker: Stoker, gone: str) -> None:
    recipe = str(folder / "recipe.yaml")
    (folder / "runs" / "run" / "metrics.jsonl").rename(folder / "metrics.jsonl") if gone == "train" else None
    code, said = stoker("train", recipe, f"data.{gone}.shards=/nonexistent/{gone}-*.tar")
    assert code == 0, said
    assert said.splitlines()[-1].endswith("runs/run is finished at step 6: nothing to do")
    assert ("unknown, " in said) == (gone == "val")
    changed = stoker("train", recipe, "optimizer.lr=0.5", "data.val.shards=/nonexistent/val-*.tar")
    assert (changed[0], "optimizer.lr: " in changed[1]) == (2, True)


@pytest.mark.parametrize("place", ["az://container", "s3://nobucket/x", "nowhere"])
def test_a_run_that_has_finished_is_told_of_wherever_its_checkpoints_went(
    folder: Path, stoker: Stoker, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    use_no_store(monkeypatch)
    run = RunFolder(folder / "runs" / "run")
    recipe = load_recipe(folder / "recipe.yaml", [f"checkpoint.dir={place}"])
    run.recipe.write_text(dump_recipe(recipe))
    code, said = stoker("status", str(run.root))
    assert code == 0, said
    assert "goodput: " in said
    assert " now" in next(line for line in summarize(recipe, run) if line.startswith("checkpoint: "))


def use_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)


def test_a_store_that_is_away_is_one_line_of_every_command(
    folder: Path, stoker: Stoker, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_no_store(monkeypatch)
    recipe, run = str(folder / "recipe.yaml"), folder / "runs" / "run"
    away = load_recipe(folder / "recipe.yaml", ["checkpoint.dir=s3://nobucket/x"])
    for path in (folder / "recipe.yaml", run / "recipe.yaml"):
        path.write_text(dump_recipe(away))
    for arguments, expected in {
        ("status", str(run)): 0,
        ("status", str(run), "--json"): 0,
        ("checkpoint", "list", str(run)): 1,
        ("checkpoint", "verify", str(run)): 1,
        ("checkpoint", "digest", "s3://nobucket/x/run/step-00000003"): 1,
        ("checkpoint", "export", str(run), str(folder / "out")): 1,
        ("plan", recipe): 2,
        ("train", recipe): 2,
    }.items():
        code, said = stoker(*arguments)
        assert code == expected, said
        if code:
            assert said.splitlines()[-1].startswith("stoker: error: ")
            assert (
                said.count("s3://nobucket/x/run cannot be read") + said.count("cannot be kept in s3://nobucket/x") == 1
            )
