"""Rules of the house that no linter checks."""

import ast
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from configs.checkout import CHECKOUT

PACKAGES = ("configs", "data", "cluster", "trainer")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _importers(prefix: str) -> set[str]:
    paths = (path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
    return {
        str(path.relative_to(CHECKOUT))
        for path in paths
        if any(name == prefix or name.startswith(f"{prefix}.") for name in _imports(path))
    }


def test_no_other_distribution_owns_our_package_names() -> None:
    owners = packages_distributions()
    assert {package: set(owners.get(package, ["stoker"])) for package in PACKAGES} == {p: {"stoker"} for p in PACKAGES}


def test_only_one_module_imports_the_train_api_of_ray_and_only_one_deepspeed() -> None:
    assert _importers("ray.train") == {
        "cluster/workers/ray_trainer.py",
        "cluster/workers/ray_policies.py",
        "cluster/workers/run_workers.py",
        "cluster/workers/worker_shell.py",
    }
    assert _importers("deepspeed") == {"trainer/engine/deepspeed_engine.py"}


def test_nothing_reads_or_writes_pickles() -> None:
    assert _importers("pickle") == set()
    sources = [path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")]
    assert not [path for path in sources if "torch.load(" in path.read_text() or "torch.save(" in path.read_text()]


def test_no_file_is_longer_than_400_lines() -> None:
    paths = [p for folder in (*PACKAGES, "tests", "benchmarks") for p in (CHECKOUT / folder).rglob("*.py")]
    assert {str(p): n for p in paths if (n := len(p.read_text().splitlines())) > 400} == {}


def test_the_loop_stays_readable() -> None:
    assert len((CHECKOUT / "trainer" / "training" / "loop.py").read_text().splitlines()) < 150
