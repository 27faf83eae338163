"""Shard patterns -> paths: names, brace ranges, globs and lists of these."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from configs.errors import DataError

SIDECAR_MARK = ".stoker-"
_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(patterns: str | Sequence[str]) -> list[Path]:
    """Paths in the given order, sorted within a glob. DataError: nothing matches, or a shard comes twice."""
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths += _expand_pattern(pattern)
    if not paths:
        raise DataError("the list of shards is empty: name at least one .tar shard")
    _refuse_duplicates(paths)
    return paths


def _expand_pattern(pattern: str) -> list[Path]:
    if "://" in pattern:
        raise DataError(f"shards {pattern}: only local shards can be read: copy them to a local or shared folder")
    if Path(pattern).is_file():
        return [Path(pattern)]
    names = expand_braces(pattern)
    found = [path for name in names for path in _expand_glob(name)]
    if not found:
        raise DataError(
            f"shards {pattern}: no file matches (working directory {Path.cwd()}): "
            "correct the path, or make shards with `stoker data pack`"
        )
    missing = [name for name in names if not glob.has_magic(name) and not Path(name).is_file()]
    if missing:
        raise DataError(
            f"shards {pattern}: {len(missing)} of {len(names)} files are missing, the first is {missing[0]} "
            f"(working directory {Path.cwd()}): correct the range or restore the files"
        )
    return found


def _expand_glob(name: str) -> list[Path]:
    if Path(name).is_file():
        return [Path(name)]
    # An index lies beside its shard, so `train*` matches it too.
    return [Path(p) for p in sorted(glob.glob(name)) if Path(p).is_file() and SIDECAR_MARK not in Path(p).name]  # noqa: PTH207


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` and `{a,b}.tar` as a shell expands them; a range keeps its zeros."""
    match = _INNERMOST_BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in _choices(match[1], pattern) for name in expand_braces(head + choice + tail)]


def _choices(inside: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        if "," not in inside:
            raise DataError(f"shards {pattern}: {{{inside}}} is neither a range {{000..009}} nor a choice {{a,b}}")
        return inside.split(",")
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise DataError(f"shards {pattern}: the range {{{inside}}} runs backwards: write {{{match[2]}..{match[1]}}}")
    return [str(number).zfill(len(match[1])) for number in range(first, last + 1)]


def _refuse_duplicates(paths: list[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"shard {path} is named twice: its samples would be trained on twice; name it once")
        seen.add(path.resolve())
