"""The figures of the house, and the bounds that it keeps: `python -m tests.house` prints them and fails beyond one.

Rooms are the folders with Python files of the product; the head of each one's `__init__.py` says what stands in it and,
behind `May import:`, which other rooms. A file with `__all__` is a door: what it names may be taken by other rooms.
"""

import ast
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from configs.checkout import CHECKOUT

PRODUCT = ("configs", "data", "cluster", "trainer")
FOLDERS = (*PRODUCT, "benchmarks", "tests")
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES, MEDIAN_FUNCTION_LINES, MOST_PARAMETERS = 16, 400, 40, 10, 8
LEAST_DOCUMENTED, MOST_COMMENTED = 0.95, 1 / 15
_SHARED_NAMES = {"__init__", "__main__", "conftest"}
_LEFT_OUT = {"__pycache__", ".hypothesis"}
_RULE = re.compile(r"May import: (\S+(?:, \S+)*)\.$")
_RUN_FILES = ("ledger.jsonl", "metrics.jsonl", "superseded.jsonl", "progress.json", "session.log")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """One Python file: `name` is dotted, `room` the package that it lies in."""

    path: Path
    root: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    @property
    def name(self) -> str:
        parts = self.path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        return ".".join(self.path.relative_to(self.root).parts[:-1])

    @cached_property
    def public(self) -> set[str]:
        """What `__all__` names: nothing where there is none."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                return set(ast.literal_eval(node.value))
        return set()

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, _FUNCTIONS)]

    @cached_property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    def documentable(self) -> Iterator[ast.AST]:
        """Public classes, functions and methods, but for those that only fulfil a Protocol or override."""
        for node in self.tree.body:
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
                yield node
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not node.bases:
                yield from (
                    inner for inner in node.body if isinstance(inner, _FUNCTIONS) and not inner.name.startswith("_")
                )


@dataclass
class House:
    """All modules of a checkout. `broken` has, by bound, what is beyond it."""

    root: Path
    broken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @cached_property
    def modules(self) -> list[Module]:
        paths = (path for folder in FOLDERS for path in sorted((self.root / folder).rglob("*.py")))
        return [Module(path, self.root) for path in paths if not _LEFT_OUT & set(path.parts)]

    @cached_property
    def product(self) -> dict[str, Module]:
        return {m.name: m for m in self.modules if m.room.split(".")[0] in PRODUCT}

    def imports(self, module: Module) -> Iterator[tuple[str, str | None]]:
        """(module of the product, name taken of it or None), those inside functions too."""
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    if whole in self.product:
                        yield whole, None
                    elif node.module in self.product:
                        yield node.module, alias.name
            elif isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names if alias.name in self.product)

    def check(self) -> dict[str, str]:
        """The figures, by what they measure; `broken` is filled on the way."""
        return {
            "files in a folder, at most": self._folders(),
            "lines of a file, at most": self._files(),
            "lines of a function, median and at most": self._functions(),
            "parameters of a constructor, at most": self._constructors(),
            "functions of the product with all types": self._typed(),
            "public names of the product with a docstring": self._documented(),
            "comment lines in lines of the product": self._commented(),
            "circles of imports": self._circles(),
            "imports that run upwards": self._upwards(),
            "imports against a room's rule": self._rules(),
            "names taken past a door": self._doors(),
            "base names that stand twice": self._names("base name", (m.path.stem for m in self.modules)),
            "class names that stand twice": self._names("class name", self._class_names()),
            "paths of a run or event names outside cluster/run/": self._vocabulary(),
            "tests that take something from another test": self._helpers(),
            "re-exports in an __init__.py": self._reexports(),
            "private files that import-linter does not protect": self._protected(),
        }

    def _bound(self, what: str, beyond: list[str]) -> None:
        if beyond:
            self.broken[what] += beyond

    def _folders(self) -> str:
        files = [p for folder in FOLDERS for p in (self.root / folder).rglob("*") if p.is_file()]
        counts = Counter(p.parent for p in files if not _LEFT_OUT & set(p.parts) and p.suffix != ".pyc")
        beyond = [f"{p.relative_to(self.root)}: {n} files" for p, n in counts.items() if n > MOST_FILES]
        self._bound("files in a folder", beyond)
        return str(max(counts.values(), default=0))

    def _files(self) -> str:
        lines = {str(m.path.relative_to(self.root)): len(m.lines) for m in self.modules}
        self._bound("lines of a file", [f"{path}: {n}" for path, n in lines.items() if n > MOST_LINES])
        return str(max(lines.values(), default=0))

    def _functions(self) -> str:
        lengths = {
            f"{m.name}.{f.name}": (f.end_lineno or f.lineno) - f.lineno + 1 for m in self.shipped for f in m.functions
        }
        self._bound("lines of a function", [f"{name}: {n}" for name, n in lengths.items() if n > MOST_FUNCTION_LINES])
        middle = median(lengths.values()) if lengths else 0
        self._bound("median of function lines", [str(middle)] if middle > MEDIAN_FUNCTION_LINES else [])
        return f"{middle:.0f} and {max(lengths.values(), default=0)}"

    @property
    def shipped(self) -> list[Module]:
        """The product and its benchmarks."""
        return [m for m in self.modules if not m.room.startswith("tests")]

    def _constructors(self) -> str:
        counts = {
            f"{m.name}.{c.name}": len(f.args.args) + len(f.args.kwonlyargs) - 1
            for m in self.shipped
            for c in m.classes
            for f in c.body
            if isinstance(f, _FUNCTIONS) and f.name == "__init__"
        }
        beyond = [f"{name}: {n}" for name, n in counts.items() if n > MOST_PARAMETERS]
        self._bound("parameters of a constructor", beyond)
        return str(max(counts.values(), default=0))

    def _typed(self) -> str:
        functions = [(m, f) for m in self.product.values() for f in m.functions]
        untyped = [f"{m.name}.{f.name}" for m, f in functions if not _is_typed(f)]
        self._bound("types of a function", untyped)
        return f"{len(functions) - len(untyped)} of {len(functions)}"

    def _documented(self) -> str:
        nodes = [(m, n) for m in self.product.values() for n in m.documentable()]
        silent = [f"{m.name}:{n.lineno}" for m, n in nodes if not ast.get_docstring(n)]  # type: ignore[arg-type, attr-defined]
        part = 1 - len(silent) / max(len(nodes), 1)
        self._bound("docstrings", silent if part < LEAST_DOCUMENTED else [])
        return f"{part:.0%} of {len(nodes)}"

    def _commented(self) -> str:
        lines = [line.strip() for m in self.product.values() for line in m.lines if line.strip()]
        comments = sum(line.startswith("#") or "  # " in line for line in lines)
        self._bound("comments", [f"{comments} of {len(lines)}"] if comments > MOST_COMMENTED * len(lines) else [])
        return f"one in {len(lines) / max(comments, 1):.0f}"

    def _circles(self) -> str:
        graph = {name: {target for target, _ in self.imports(m)} for name, m in self.product.items()}
        circles = [" <-> ".join(sorted(circle)) for circle in _strongly_connected(graph)]
        self._bound("circles of imports", circles)
        return str(len(circles))

    def _upwards(self) -> str:
        """By the `layers` contracts of import-linter, which has the last word."""
        beyond = []
        for contract in self.contracts:
            if contract["type"] == "layers":
                level = _levels(contract)
                for module in self.product.values():
                    own = _level_of(module.name, level)
                    targets = {target for target, _ in self.imports(module)}
                    beyond += [
                        f"{module.name} imports {target}"
                        for target in targets
                        if own is not None and (theirs := _level_of(target, level)) is not None and theirs < own
                    ]
        self._bound("upward imports", beyond)
        return str(len(beyond))

    @cached_property
    def contracts(self) -> list[dict[str, Any]]:
        """Of import-linter."""
        read = tomllib.loads((self.root / "pyproject.toml").read_text())
        found: list[dict[str, Any]] = read["tool"]["importlinter"]["contracts"]
        return found

    def _rules(self) -> str:
        allowed = {m.name: self._rule(m) for m in self.product.values() if m.path.name == "__init__.py"}
        beyond = []
        for module in self.product.values():
            for target, _ in self.imports(module):
                room = self.product[target].room
                if room not in (module.room, *allowed[module.room]):
                    beyond.append(f"{module.name} imports {target}: {module.room} may import {allowed[module.room]}")
        self._bound("a room's rule", beyond)
        return str(len(beyond))

    def _rule(self, module: Module) -> list[str]:
        found = _RULE.search(" ".join((ast.get_docstring(module.tree) or "").split()))
        if found is None:
            self._bound("a room's rule", [f"{module.path.relative_to(self.root)} says no `May import: ….`"])
            return []
        return [] if found[1] == "nothing" else found[1].split(", ")

    def _doors(self) -> str:
        taken: dict[str, set[str]] = defaultdict(set)
        for module in self.product.values():
            for target, name in self.imports(module):
                if self.product[target].room != module.room:
                    taken[target].add(name or "the module itself")
        past = [f"{t}: {', '.join(sorted(n))}" for t in taken if (n := self._past(t, taken[t]))]
        unused = [f"{m.name} is no door" for m in self.product.values() if m.public and m.name not in taken]
        self._bound("doors", past + unused)
        return str(len(past))

    def _past(self, target: str, names: set[str]) -> set[str]:
        public = self.product[target].public
        return names - public - ({"the module itself"} if public else set())

    def _class_names(self) -> Iterator[str]:
        return (c.name for m in self.shipped for c in m.classes)

    def _names(self, kind: str, names: Iterator[str]) -> str:
        twice = [f"{name} × {n}" for name, n in Counter(names).items() if n > 1 and name not in _SHARED_NAMES]
        self._bound(f"unique {kind}s", twice)
        return str(len(twice))

    def _vocabulary(self) -> str:
        beyond = []
        for module in self.product.values():
            if module.room != "cluster.run":
                beyond += [f"{module.name}:{line}" for line in _spelled_here(module.tree)]
        self._bound("paths and event names", beyond)
        return str(len(beyond))

    def _helpers(self) -> str:
        beyond = []
        for module in self.modules:
            if module.path.stem.startswith(("test_", "conftest")):
                beyond += [f"{module.name} imports {name}" for name in _imports_of_tests(module.tree)]
        self._bound("helpers outside tests/support/", beyond)
        return str(len(beyond))

    def _reexports(self) -> str:
        rooms = [m for m in self.product.values() if m.path.name == "__init__.py"]
        beyond = [m.name for m in rooms if len(m.tree.body) > 1]
        self._bound("nothing but a docstring in an __init__.py", beyond)
        return str(len(beyond))

    def _protected(self) -> str:
        named = {name for c in self.contracts if c["type"] == "protected" for name in c["protected_modules"]}
        private = {m.name for m in self.product.values() if "." in m.name and not m.public and not _is_entry(m)}
        wrong = sorted(private ^ named)
        self._bound("protected files", wrong)
        return str(len(wrong))


def _spelled_here(tree: ast.Module) -> Iterator[int]:
    """Lines that name a file of a run folder, or take an event by the key of its line."""
    for node in ast.walk(tree):
        if (isinstance(node, ast.Constant) and node.value in _RUN_FILES) or (
            isinstance(node, ast.Subscript) and getattr(node.slice, "value", None) == "event"
        ):
            yield node.lineno


def _imports_of_tests(tree: ast.Module) -> Iterator[str]:
    """Of test files: what is there for others is in tests/support/, or a program of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            last = (node.module or "").rpartition(".")[2]
            if last.startswith(("test_", "conftest")):
                yield str(node.module)


def _levels(contract: dict[str, Any]) -> dict[str, int]:
    """By package or module: 0 is the highest layer."""
    prefixes = [f"{container}." for container in contract.get("containers", [])] or [""]
    return {
        f"{prefix}{name.strip()}": number
        for number, layer in enumerate(contract["layers"])
        for name in layer.split("|")
        for prefix in prefixes
    }


def _level_of(module: str, levels: dict[str, int]) -> int | None:
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((levels[name] for name in names if name in levels), None)


def _is_typed(function: Function) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = [a for a in arguments if a.arg not in ("self", "cls")]
    return function.returns is not None and all(a.annotation is not None for a in named)


def _is_entry(module: Module) -> bool:
    return module.path.name in ("__init__.py", "__main__.py")


def _strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """The circles: modules that reach each other (Kosaraju's algorithm)."""
    order: list[str] = []
    seen: set[str] = set()
    for start in graph:
        _visit(start, graph, seen, order)
    back: dict[str, set[str]] = defaultdict(set)
    for source, targets in graph.items():
        for target in targets:
            back[target].add(source)
    seen, circles = set(), []
    for start in reversed(order):
        circle: list[str] = []
        _visit(start, back, seen, circle)
        if len(circle) > 1 or (circle and circle[0] in graph[circle[0]]):
            circles.append(set(circle))
    return circles


def _visit(node: str, graph: dict[str, set[str]], seen: set[str], finished: list[str]) -> None:
    if node in seen:
        return
    seen.add(node)
    for following in graph[node]:
        _visit(following, graph, seen, finished)
    finished.append(node)


def main() -> int:
    house = House(CHECKOUT)
    for what, figure in house.check().items():
        print(f"{what:<52}{figure:>16}")
    for bound, beyond in house.broken.items():
        print(f"\nbeyond the bound, {bound}:", *beyond, sep="\n  ")
    return 1 if house.broken else 0


if __name__ == "__main__":
    sys.exit(main())
