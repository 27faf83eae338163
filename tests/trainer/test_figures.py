"""What a run tells of itself: metrics.jsonl, TensorBoard, goodput, status."""

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from configs.recipe import Recipe
from tests.trainer.runs import GPT, recipe_of, run_folder_of, train_in_processes, write_text_shards
from trainer import cli
from trainer.ledger import Ledger, read_json_lines
from trainer.metrics import TAGS, JsonLines
from trainer.run_folder import RunFolder
from trainer.timeline import CLASSES


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
    ledger.append("command", time_here=time.time())
    assert [event["event"] for event in ledger.events()] == ["command", "command"]
