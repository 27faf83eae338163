"""`stoker data pack` as users type it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from configs.errors import EXIT_REQUEUE
from configs.recipe import Recipe
from data.index.shard_patterns import expand_patterns
from data.pack.partial_folder import partial_folder
from tests.support.data.pack_gate import gated, make_gate
from tests.support.data.packed_folder import read_split
from trainer.commands.data import app

STOKER = str(Path(sys.executable).with_name("stoker"))


def _pack(*words: str) -> list[str]:
    result = CliRunner().invoke(app, ["pack", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"text {number}")
    return folder


def _recipe(lines: list[str], model: dict[str, object]) -> Recipe:
    start = lines.index("in a recipe:")
    sections = yaml.safe_load("\n".join(lines[start + 1 :]))
    fields = {"run": {"name": "a", "steps": 1}, "batch": {"global": 8, "micro": 8}, "optimizer": {"kind": "adamw"}}
    return Recipe.model_validate({**fields, "model": model, **sections})


def test_the_last_lines_are_those_of_a_recipe_that_finds_the_shards(tmp_path: Path, texts: Path) -> None:
    for tokenizer, kind in (([], "text"), (["--tokenizer", "bytes"], "tokens")):
        out = tmp_path / kind
        lines = _pack("text", str(texts), str(out), "--val-fraction", "0.2", *tokenizer)
        data = _recipe(lines, {"kind": "gpt"}).data
        assert data.kind == kind
        assert data.val is not None
        shards = [entry for source in data.train.sources for entry in expand_patterns(source.shards)]
        assert [*shards, *expand_patterns(data.val.shards)] == [
            str(out / "train-000000.tar"),
            str(out / "val-000000.tar"),
        ]
        assert kind == "text" or "vocab: 257" in lines[-1]


def test_the_classes_of_packed_images_are_those_of_the_recipe(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    for number in range(6):
        path = tmp_path / "in" / f"class-{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    lines = _pack("images", str(tmp_path / "in"), str(tmp_path / "out"), "--val-fraction", "0")
    recipe = _recipe(lines, {})
    assert (recipe.model.kind, recipe.data.kind, recipe.data.val) == ("resnet", "image", None)
    assert "classes: 3" in lines[-1]


def test_options_reach_the_packing_of_tables_and_arrays(tmp_path: Path, texts: Path) -> None:
    rows = [f'{{"file": "{path.name}", "body": "b", "kind": "k"}}\n' for path in sorted(texts.iterdir())]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    (tmp_path / "classes.json").write_text('["j", "k"]')
    options = ["--text", "body", "--label", "kind", "--file", "raw=file", "--part", "json=file", "--root", str(texts)]
    options += ["--classes", str(tmp_path / "classes.json"), "--shard-samples", "9", "--val-fraction", "0"]
    _pack("table", str(tmp_path / "a.jsonl"), str(tmp_path / "out"), *options)
    samples = read_split(tmp_path / "out", "train").values()
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5
    for sample in samples:
        assert (sample["txt"], sample["cls"]) == (b"b", b"1")
        assert sample["raw"] == (texts / sample["json"].decode()).read_bytes()
    np.save(tmp_path / "a.npy", np.arange(10))
    lines = _pack("arrays", str(tmp_path / "a.npy"), str(tmp_path / "rows"), "--rows", "3", "--vocab", "11")
    assert "kind: tokens, vocab: 11" in lines[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_finished_and_asks_to_be_run_again(tmp_path: Path, texts: Path, workers: int) -> None:
    out = tmp_path / "out"
    options = ["--shard-samples", "1", "--workers", str(workers), "--val-fraction", "0"]
    command = [STOKER, "data", "pack", "text", str(texts), str(out), *options]
    make_gate(tmp_path / "gate")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=gated(tmp_path / "gate", 5),  # or it might be over before it is interrupted
    )
    while process.poll() is None and not list((partial_folder(out) / "records").glob("*.json")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: every process of the group
    output, errors = process.communicate()
    assert process.returncode == EXIT_REQUEUE
    last = output.splitlines()[-1]
    assert last == f"interrupted: finished shards are kept in {out}.partial, and the same command goes on"
    assert errors == ""
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "of 40 shards are finished" in finished.stdout
    assert len(read_split(out, "train")) == 40
