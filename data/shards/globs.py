"""Globs over names with folders, as a shell with `**` has them. Pure."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from configs.errors import DataError

__all__ = ["glob_as_regex"]











_GLOB_TOKENS = re.compile(r"((?<![^/])\*\*/|\*\*|\*|\?|\[!?[^\]]+\])")
_GLOB_AS_REGEX = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob_as_regex(pattern: str) -> re.Pattern[str]:
    """What matches the same paths."""
    return re.compile("".join(map(_token_as_regex, _GLOB_TOKENS.split(pattern))), re.DOTALL)


def _token_as_regex(token: str) -> str:
    if token in _GLOB_AS_REGEX:
        return _GLOB_AS_REGEX[token]
    if token.startswith("[") and token.endswith("]") and len(token) > 2:
        inside = token[1:-1].replace("\\", "\\\\")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(token)
