"""Shard patterns -> names: paths, URLs, brace ranges, globs and lists of these."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from configs.errors import DataError
from data.shards.globs import glob_as_regex

__all__ = ["SIDECAR_MARK", "globs_match"]


SIDECAR_MARK = ".stoker-"
_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_patterns(patterns: str | Sequence[str]) -> list[str]:
    """Paths and URLs in the given order, sorted within a glob. DataError: nothing matches, or a shard comes twice.

    `*` and `?` stay within a folder, `**` does not; `~/` is the home folder. URLs are looked up only where they are
    globs.
    """
    names: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names += _expand_urls(pattern) if is_url(pattern) else _expand_pattern(_expand_home(pattern))
    if not names:
        raise DataError("the list of shards is empty: name at least one .tar shard")
    _refuse_duplicates(names)
    return names


def is_url(name: str) -> bool:
    """Whether it names something elsewhere, rather than a file."""
    return "://" in name


def globs_match(patterns: str | Sequence[str], path: Path) -> bool:
    """Whether a glob among them stands for this file, be it there or not."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = [] if is_url(pattern) or Path(_expand_home(pattern)).is_file() else expand_braces(_expand_home(pattern))
        globs = (os.path.abspath(name) for name in names if glob.has_magic(name))  # noqa: PTH100 - .. is resolved too
        if any(glob_as_regex(name).fullmatch(os.path.abspath(path)) for name in globs):  # noqa: PTH100
            return True
    return False


def _expand_home(pattern: str) -> str:
    return str(Path(pattern).expanduser()) if pattern.startswith("~/") else pattern


def _expand_urls(pattern: str) -> list[str]:
    return [url for name in expand_braces(pattern) for url in _expand_url_glob(name)]


def _expand_url_glob(name: str) -> list[str]:
    scheme, _, place = name.partition("://")
    # In http, ? starts the query.
    if not glob.has_magic(place.partition("?")[0] if scheme in ("http", "https") else place):
        return [name]
    from data.remote.list_objects import list_remote  # only where it is needed: it loads the object stores' client

    found = [url for url in list_remote(name) if SIDECAR_MARK not in url.rpartition("/")[2]]
    if not found:
        raise DataError(f"shards {name}: nothing matches: correct the URL")
    return found


def _expand_pattern(pattern: str) -> list[str]:
    if Path(pattern).is_file():
        return [str(Path(pattern))]
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


def _expand_glob(name: str) -> list[str]:
    if Path(name).is_file():
        return [str(Path(name))]
    # An index lies beside its shard, so `train*` matches it too.
    # `**.tar` reaches into folders too, as in object stores.
    recursive = re.sub(r"(?<![^/])\*\*(?=[^/])", "**/*", name)
    found = [Path(p) for p in sorted(glob.glob(recursive, recursive=True))]  # noqa: PTH207
    return [str(path) for path in found if path.is_file() and SIDECAR_MARK not in path.name]


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


def _refuse_duplicates(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        place = name if is_url(name) else str(Path(name).resolve())
        if place in seen:
            raise DataError(f"shard {name} is named twice: its samples would be trained on twice; name it once")
        seen.add(place)
