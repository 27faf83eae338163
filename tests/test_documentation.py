"""The documents name what is there: files, definitions, rooms."""

import ast
import re
from pathlib import Path

import pytest

from configs.checkout import CHECKOUT
from tests.house import PRODUCT
from tests.support.training.runs import history, recipe_of, train_in_processes, write_image_shards

PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])
_FILE = re.compile(r"`((?:configs|data|cluster|trainer|tests|benchmarks|slurm|docs)/[\w/.-]+\.\w+)`")
_ROOM = re.compile(r"^\| `([a-z_/]+)/` \|", re.MULTILINE)
_DEFINITIONS = re.compile(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # of its time
    missing = {name for name in _FILE.findall(page.read_text()) if not (CHECKOUT / name).exists()}
    assert missing == set()


def test_every_definition_that_where_md_names_is_in_its_file() -> None:
    found = _DEFINITIONS.findall((CHECKOUT / "docs" / "where.md").read_text())
    assert len(found) >= 30
    missing = []
    for path, names in found:
        tree = ast.parse((CHECKOUT / path).read_text())
        there = {getattr(node, "name", None) or getattr(node, "id", None) for node in ast.walk(tree)}
        missing += [f"{path}: {name}" for name in re.findall(r"\w+", names) if name not in there]
    assert missing == []


def test_the_smallest_task_of_the_readme_is_whole_and_trains_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(# my_mlp\.py\n.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) < 25
    monkeypatch.chdir(tmp_path)
    Path("my_mlp.py").write_text(code)
    write_image_shards(tmp_path)
    shards = {split: {"shards": str(tmp_path / f"{split}-*.tar")} for split in ("train", "val")}
    data = {"kind": "image", "size": 8, "channels": 1, **shards}
    model = {"kind": f"{tmp_path}/my_mlp.py:Mlp", "width": 128, "classes": 10}
    recipe = recipe_of(
        tmp_path, model, "run", data=data, run={"name": "run", "dir": str(tmp_path / "runs"), "steps": 3}
    )
    train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    assert history(recipe)[-1]["step"] == 3


def test_the_table_of_rooms_has_every_room_once() -> None:
    section = (CHECKOUT / "docs" / "architecture.md").read_text().split("\n## ")[1]
    listed = _ROOM.findall(section)
    rooms = [
        p.parent.relative_to(CHECKOUT).as_posix() for room in PRODUCT for p in (CHECKOUT / room).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(rooms)
