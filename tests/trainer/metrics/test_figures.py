"""What a run tells of itself: metrics.jsonl, TensorBoard, goodput, status."""

import fcntl
import json
import math
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from cluster.run.ledger import Ledger, read_json_lines
from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from tests.support.ledger_events import event
from tests.support.training.runs import GPT, history, recipe_of, run_folder_of, train_in_processes, write_text_shards
from trainer import cli
from trainer.history.wall_time_spans import CLASSES
from trainer.launch.final_summary import summarize
from trainer.metrics.sinks import TAGS, JsonLines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished run of one worker."""
    folder = tmp_path_factory.mktemp("finished")
    write_text_shards(folder)
    recipe = recipe_of(folder, GPT, "run", workers={"count": 1})
    train_in_processes(folder / "store", 1, [(recipe, None)])
    return recipe


def test_metrics_have_every_logged_step_once_with_all_figures(finished: Recipe) -> None:
    lines = read_json_lines(run_folder_of(finished) / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    expected = {"loss", "lr", "grad_norm", "loss_scale", "samples", "tokens", "step_s", "data_wait_s", "mfu"}
    assert all(expected <= line.keys() for line in lines)
    assert [line["samples"] for line in lines] == [8 * step for step in range(1, 11)]
    assert [line["tokens"] for line in lines] == [8 * 16 * step for step in range(1, 11)]
    assert [line["step"] for line in lines if "val_loss" in line] == [5, 10]


def test_the_tokens_are_those_that_were_predicted_wherever_the_run_was_cut(tmp_path: Path) -> None:
    """With document_mask their number differs from batch to batch."""
    write_text_shards(tmp_path)
    shards = {split: {"shards": str(tmp_path / f"{split}-*.tar")} for split in ("train", "val")}
    data = {"kind": "text", "packing": "best_fit", "document_mask": True, **shards}
    each, whole, cut = (
        recipe_of(tmp_path, GPT, name, data=data, validation=None, workers={"count": 1}, monitor={"every_steps": every})
        for name, every in (("each", 1), ("whole", 4), ("cut", 4))
    )
    train_in_processes(tmp_path / "store", 1, [(each, None), (whole, None), (cut, 6), (cut, None)])
    of_step = {line["step"]: line["tokens"] for line in history(each)}
    counts = [of_step[step] - of_step.get(step - 1, 0) for step in of_step]
    assert len(set(counts)) > 1
    for recipe in (whole, cut):
        assert all(line["tokens"] == of_step[line["step"]] for line in history(recipe))


def test_tensorboard_has_the_tags_of_the_design(finished: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder_of(finished) / "tensorboard"))
    events.Reload()
    of_other_runs = {"val/accuracy", "memory/device_bytes", "data/skipped_samples", "data/val_skipped_samples"}
    of_other_runs |= {"speed/slowest_rank_ratio", "train/left_out_steps"}
    totals = {f"time/total_{kind}_s" for kind in CLASSES}
    assert (set(TAGS.values()) | totals) - of_other_runs == set(events.Tags()["scalars"])
    logged = read_json_lines(run_folder_of(finished) / "metrics.jsonl")
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx([line["loss"] for line in logged])


def test_status_tells_state_step_and_where_the_time_went_to_people_and_programs(
    finished: Recipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = []
    for option in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["stoker", "status", str(run_folder_of(finished)), *option])
        with pytest.raises(SystemExit):
            cli.main()
        printed.append(capsys.readouterr().out)
    assert "finished, step 10 of 10, 1 attempts" in printed[0]
    assert "newest checkpoint: step 10" in printed[0]
    assert printed[0].splitlines()[-1] == "finished: step 10"
    told = json.loads(printed[1])
    assert (told["state"], told["step"], told["checkpoints"], told["faults"]) == ("finished", 10, [5, 10], [])
    assert sum(told["seconds"].values()) == pytest.approx(told["wall_s"])
    assert f"goodput: {told['goodput']:.1%}" in printed[0]
    row = next(line.split() for line in printed[0].splitlines() if line.startswith("validation"))
    assert row[1:3] == [
        f"{told['seconds']['validation']:,.1f}",
        f"{told['seconds']['validation'] / told['wall_s']:.1%}",
    ]


def test_the_figures_of_a_run_are_strict_json(tmp_path: Path) -> None:
    """A diverged run's too: other readers than Python's know neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    write_text_shards(tmp_path)
    scale = {"initial_power": 20, "hysteresis": 1}
    fp16 = {"precision": "fp16", "loss_scale": scale, "zero": {"stage": 2}, "workers": {"count": 1}}
    recipe = recipe_of(tmp_path, GPT, "overflows", optimizer={"kind": "adamw", "lr": 1e-3}, **fp16)
    train_in_processes(tmp_path / "store", 1, [(recipe, None)])
    lines = (run_folder_of(recipe) / "metrics.jsonl").read_text().splitlines()
    figures = [json.loads(line, parse_constant=refuse) for line in lines]
    assert "grad_norm" not in figures[0]
    assert "grad_norm" in figures[-1]
    Ledger(tmp_path / "ledger.jsonl").append(
        event("any", rate=math.nan, hosts={"a": math.inf, "b": 1.5}, each=[math.nan, 1])
    )
    (line,) = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert (line["hosts"], line["each"], "rate" in line) == ({"b": 1.5}, [None, 1], False)


def test_a_finished_run_stays_finished_whatever_became_of_its_validation_data(finished: Recipe, tmp_path: Path) -> None:
    folder = RunFolder.of(finished)
    assert "(unigram entropy of the data: " in summarize(finished, folder)[1]
    gone = finished.model_copy(update={"validation": None})
    assert "entropy" not in "".join(summarize(gone, folder))
    assert finished.data.val is not None
    lost = finished.data.val.model_copy(update={"shards": str(tmp_path / "val-*.tar")})
    moved = finished.model_copy(update={"data": finished.data.model_copy(update={"val": lost})})
    assert "entropy of the data: unknown, " in summarize(moved, folder)[1]


def test_board_serves_the_run_on_localhost(finished: Recipe) -> None:
    stoker = Path(sys.executable).with_name("stoker")
    command = [stoker, "board", str(run_folder_of(finished)), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(
                word for line in process.stdout for word in line.split() if word.startswith("http://localhost")
            )
            assert "train/loss" in urlopen(f"{address}data/plugin/scalars/tags", timeout=30).read().decode()
        finally:
            process.terminate()


def test_lines_of_lost_steps_are_superseded_but_kept_aside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    folder.log(2, 0).parent.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 1 / 3}) + "\n" for step in range(1, 8)]
    folder.metrics.write_text("".join(lines) + '{"step": 8, "lo')  # torn by a crash
    sink = JsonLines(folder, 2, resumed_step=5)
    sink.log({"step": 6, "loss": 0.1})
    sink.close()
    kept = read_json_lines(folder.metrics)
    assert [line["step"] for line in kept] == [1, 2, 3, 4, 5, 6]
    assert (kept[4]["loss"], kept[5]["loss"]) == (1 / 3, 0.1)
    assert [line["step"] for line in read_json_lines(folder.superseded(2))] == [6, 7]


def test_a_ledger_line_torn_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "command", "time": 1}\n{"event": "atte')
    ledger = Ledger(path)
    ledger.append(event("command"))
    assert [each.name for each in ledger.events()] == ["command", "command"]


def test_a_process_that_was_stopped_while_it_wrote_does_not_stop_the_others_from_writing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(event("command"))
    with (tmp_path / "ledger.jsonl").open("a") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        ledger.append(event("command"))
    assert len(ledger.events()) == 2
