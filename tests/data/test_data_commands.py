"""`stoker data` on real folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from configs.errors import DataError
from configs.load import load_recipe
from configs.recipe import Recipe
from data.dataset import open_dataset
from trainer.commands.data import app


def _run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def recipe_file(tmp_path: Path, image_shard: Path, image_recipe: Callable[..., Recipe]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(image_recipe([image_shard]).model_dump(by_alias=True, exclude_none=True)))
    return path


def test_order_prints_the_keys_that_training_reads(recipe_file: Path) -> None:
    output = _run("order", str(recipe_file), "--step", "3", "batch.micro=4")
    keys = [key for line in output.splitlines() for key in line.partition(": ")[2].split()]
    assert keys == open_dataset(load_recipe(recipe_file), "train").keys(24, 36)
    assert [line.partition(":")[0] for line in output.splitlines()] == [f"micro-batch {i}" for i in range(3)]


def test_verify_lists_each_problem_and_fails(
    recipe_file: Path, tmp_path: Path, make_shard: Callable[..., Path], png: Callable[[int], bytes]
) -> None:
    assert "no problems" in _run("verify", str(recipe_file))
    samples = {"good": {"png": png(1), "cls": b"1"}, "bad": {"png": b"", "cls": b"x"}}
    make_shard(tmp_path / "images.tar", samples)
    result = CliRunner().invoke(app, ["verify", str(recipe_file)])
    assert isinstance(result.exception, DataError)
    assert result.output.count("images.tar: sample bad: part png (0 bytes)") == 2  # as train and as val shard
    assert "sample bad: part cls is b'x'" in result.output


def test_packed_text_is_indexed_and_verified(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(30):
        (tmp_path / "in" / f"{i}.md").write_text(f"text {i}")
    _run("pack", "text", str(tmp_path / "in"), str(tmp_path / "out"), "--glob", "*.md", "--val-fraction", "0.3")
    shards = str(tmp_path / "out" / "{train,val}-*.tar")
    assert "2 shards, 30 samples, parts txt" in _run("index", shards)
    assert "no problems" in _run("verify", shards)
