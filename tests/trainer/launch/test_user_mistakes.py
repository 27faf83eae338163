"""Each mistake of a user: one line that names the thing and the remedy, exit 2, nothing half-written, no traceback."""

import fcntl
import shutil
from pathlib import Path

import pytest

from cluster.run.ledger import Ledger
from configs.checkout import CHECKOUT
from configs.load import dump_recipe
from tests.support.ledger_events import event
from tests.support.training.runs import GPT, RESNET, recipe_of, write_image_shards, write_text_shards
from trainer import cli


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stoker(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command, in this process."""
    monkeypatch.setattr("sys.argv", ["stoker", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def write_recipe(folder: Path, model: dict[str, object], **sections: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe_of(folder, model, "run", **sections)))
    return str(path)


def _remove_shards(folder: Path) -> None:
    for path in folder.glob("train-*.tar"):
        path.unlink()


def _empty(folder: Path) -> None:
    (folder / "train-000000.tar").write_bytes(bytes(10240))


def _not_a_tar(folder: Path) -> None:
    (folder / "train-000000.tar").write_bytes(b"no tar" * 2000)


def _truncate(folder: Path) -> None:
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])


def _file_as_run_dir(folder: Path) -> None:
    (folder / "runs").write_text("in the way")


CASES = {
    "unknown key": (None, ["model.layerz=2"], "did you mean layers?"),
    "wrong type": (None, ["model.layers=many"], "model.layers is 'many'"),
    "missing shards": (_remove_shards, [], "train-*.tar"),
    "empty tar": (_empty, [], "train-000000.tar"),
    "not a tar": (_not_a_tar, [], "train-000000.tar"),
    "truncated tar": (_truncate, [], "train-000000.tar"),
    "sample without the part": (None, ["data.part=md"], "md"),
    "batch not divisible": (None, ["batch.micro=3"], "choose batch.micro from"),
    "more workers than cpus": (None, ["workers.count=999"], "needs 999 cpus"),
    "gpus where there are none": (None, ["workers.gpus=1"], "gpus"),
    "run folder is a file": (_file_as_run_dir, [], "runs"),
    "checkpoints in a file": (_file_as_run_dir, ["run.dir=other", "checkpoint.dir=runs"], "cannot be kept in"),
    "no bucket of that kind": (None, ["checkpoint.dir=az://container"], "checkpoint.dir az://container/run"),
    "stop beyond the end": (None, ["--stop-at", "99"], "--stop-at is 99"),
    "vocabulary too small": (None, ["model.vocab=100"], "model.vocab is 100"),
    "no integer": (None, ["workers.count=08x"], "workers.count is '08x'"),
    "a best that is the worst": (None, ["checkpoint.keep_best.mode=max"], "keeps the worst val_loss"),
    "too large for the disk": (None, ["model.width=65536", "model.layers=512"], "free"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_exit_2(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, options, expected = CASES[case]
    write_text_shards(folder)
    recipe = write_recipe(folder, GPT)
    if break_it:
        break_it(folder)
    code, errors = stoker(capsys, monkeypatch, "train", recipe, *options)
    assert code == 2, errors
    assert expected in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1, errors
    assert not (folder / "runs" / "run").exists()


def test_checkpoints_that_are_not_where_they_were_do_not_make_a_run_start_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_shards(folder)
    recipe = write_recipe(folder, GPT)
    run = folder / "runs" / "run"
    run.mkdir(parents=True)
    Ledger(run / "ledger.jsonl").append(event("checkpoint", step=50_000))
    code, errors = stoker(capsys, monkeypatch, "train", recipe, f"checkpoint.dir={folder / 'other'}")
    assert code == 2
    assert f"has saved step 50000, but there is no checkpoint in {folder / 'other' / 'run'}" in errors


def test_a_label_out_of_range_is_found_by_verify(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image_shards(folder)
    recipe = write_recipe(folder, {**RESNET, "classes": 2})
    monkeypatch.setattr("sys.argv", ["stoker", "data", "verify", recipe])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code not in (0, None)
    assert "train-000000.tar" in printed.out + printed.err
    assert "cls" in printed.out + printed.err


def test_a_second_run_on_the_same_folder_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_shards(folder)
    recipe = write_recipe(folder, GPT)
    lock = folder / "runs" / "run" / ".lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, errors = stoker(capsys, monkeypatch, "train", recipe)
    assert code == 2
    assert "another `stoker train`" in errors


def test_plan_stops_at_an_error_with_exit_2_and_starts_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_shards(folder)
    recipe = write_recipe(folder, GPT)
    monkeypatch.setattr("sys.argv", ["stoker", "plan", recipe])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "nothing stands in the way" in capsys.readouterr().out
    _truncate(folder)
    code, errors = stoker(capsys, monkeypatch, "plan", recipe)
    assert code == 2
    assert "train-000000.tar" in errors
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("name", ["gpt_124m", "resnet50_imagenet"])
def test_plan_works_for_a_machine_that_is_not_this_one(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CHECKOUT / "configs" / f"{name}.yaml"
    monkeypatch.setattr("sys.argv", ["stoker", "plan", str(recipe)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "estimated memory per worker" in printed
    assert "planned for another machine" in printed


def test_status_of_something_else_is_a_mistake(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, errors = stoker(capsys, monkeypatch, "status", str(folder))
    assert code == 2
    assert "is not a run folder" in errors
    shutil.rmtree(folder)
