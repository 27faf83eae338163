"""Small files of a run that are whole or absent, also after a crash."""

import json
from pathlib import Path
from typing import Any

from data.atomic import published


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Leaves nothing behind when it fails."""
    with published(path) as file:
        file.write(content)


def to_json(value: Any) -> bytes:
    """Indented JSON that keeps every bit of a float."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
