"""Globs over names with folders, as a shell with `**` has them. Pure."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from configs.errors import DataError

__all__ = ["glob_as_regex"]




_GLOB_PIECES = re.compile(r"((?<![^/])\*\*/|\*\*|\*|\?|\[!?[^\]]+\])")
_GLOB_AS_REGEX = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob_as_regex(pattern: str) -> re.Pattern[str]:
    """What matches the same paths."""
    return re.compile("".join(map(_piece_as_regex, _GLOB_PIECES.split(pattern))), re.DOTALL)


def _piece_as_regex(piece: str) -> str:
    if piece in _GLOB_AS_REGEX:
        return _GLOB_AS_REGEX[piece]
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        inside = piece[1:-1].replace("\\", "\\\\")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(piece)
