"""Rules of the house: the bounds of tests/house.py, and what no import graph shows."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from configs.checkout import CHECKOUT
from tests.house import PRODUCT, House


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _importers(prefix: str) -> set[str]:
    paths = (path for package in PRODUCT for path in (CHECKOUT / package).rglob("*.py"))
    return {
        str(path.relative_to(CHECKOUT))
        for path in paths
        if any(name == prefix or name.startswith(f"{prefix}.") for name in _imports(path))
    }


def test_the_house_keeps_its_bounds() -> None:
    house = House(CHECKOUT)
    figures = house.check()
    assert dict(house.broken) == {}, figures


_ROOM = '"""A room.\n\nMay import: {}.\n"""\n'
_INSIDE = "def f() -> None:\n    from configs import a\n"
_NINE = ", ".join(f"{name}: int" for name in "abcdefghi")
_LONG = "def f() -> int:\n" + "    x = 1\n" * 40 + "    return x\n"


@pytest.mark.parametrize(
    ("files", "bound"),
    [
        ({"configs/a.py": "from configs import b\n", "configs/b.py": _INSIDE}, "circles"),
        ({"configs/a.py": "from data.b import c\n", "data/b.py": '__all__ = ["c"]\nc = 1\n'}, "a room's rule"),
        ({"configs/a.py": "from data.b import c\n", "data/b.py": '__all__ = ["c"]\nc = 1\n'}, "upward imports"),
        ({"data/a.py": "from configs.b import c\n", "configs/b.py": "c = 1\n"}, "doors"),
        ({"configs/b.py": '__all__ = ["c"]\nc = 1\n'}, "doors"),
        ({"configs/a.py": "class C:\n    pass\n", "benchmarks/b.py": "class C:\n    pass\n"}, "unique class names"),
        ({"configs/a.py": "", "data/a.py": ""}, "unique base names"),
        ({"configs/a.py": _LONG}, "lines of a function"),
        ({"configs/a.py": "x = 1\n" * 401}, "lines of a file"),
        ({f"configs/a{n}.py": "" for n in range(16)}, "files in a folder"),
        ({"configs/a.py": "def f(x):\n    return x\n"}, "types of a function"),
        ({"configs/__init__.py": _ROOM.format("nothing") + "x = 1\n"}, "nothing but a docstring"),
        ({"configs/__init__.py": '"""No rule."""\n'}, "a room's rule"),
        ({"tests/test_a.py": "from tests.test_b import c\n", "tests/test_b.py": "c = 1\n"}, "helpers"),
        ({"configs/a.py": 'path = "ledger.jsonl"\n'}, "paths and event names"),
        ({"configs/a.py": "def f() -> None:\n    pass\n"}, "docstrings"),
        ({"configs/a.py": f"class C:\n    def __init__(self, {_NINE}) -> None:\n        pass\n"}, "parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_house_sees_what_is_beyond_a_bound(files: dict[str, str], bound: str, tmp_path: Path) -> None:
    rooms = {f"{room}/__init__.py": _ROOM.format(rule) for room, rule in (("configs", "nothing"), ("data", "configs"))}
    contract = '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["data", "configs"]\n'
    for path, text in {**rooms, "pyproject.toml": contract, **files}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    house = House(tmp_path)
    house.check()
    assert any(broken.startswith(bound) for broken in house.broken), house.broken


def test_no_other_distribution_owns_our_package_names() -> None:
    owners = packages_distributions()
    assert {package: set(owners.get(package, ["stoker"])) for package in PRODUCT} == {p: {"stoker"} for p in PRODUCT}


def test_only_one_room_imports_the_train_api_of_ray_and_only_one_module_deepspeed() -> None:
    assert {path.rpartition("/")[0] for path in _importers("ray.train")} == {"cluster/workers"}
    assert _importers("deepspeed") == {"trainer/engine/deepspeed_engine.py"}


@pytest.mark.parametrize("module", ["trainer.cli", "trainer.history.run_report", "cluster.slurm_job.batch_main"])
def test_what_does_not_train_imports_neither_torch_nor_ray(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'deepspeed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.split() == []


def test_nothing_reads_or_writes_pickles() -> None:
    assert _importers("pickle") == set()
    sources = [path for package in PRODUCT for path in (CHECKOUT / package).rglob("*.py")]
    assert not [path for path in sources if "torch.load(" in path.read_text() or "torch.save(" in path.read_text()]
