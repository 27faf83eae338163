"""The documents name what is there: files, definitions, rooms."""

import ast
import re
from pathlib import Path

import pytest

from configs.checkout import CHECKOUT
from tests.house import PRODUCT

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


def test_the_table_of_rooms_has_every_room_once() -> None:
    section = (CHECKOUT / "docs" / "architecture.md").read_text().split("\n## ")[1]
    listed = _ROOM.findall(section)
    rooms = [
        p.parent.relative_to(CHECKOUT).as_posix() for room in PRODUCT for p in (CHECKOUT / room).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(rooms)
