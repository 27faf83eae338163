"""A Python file of the user's own, which a recipe names as FILE.py:NAME: hashed, loaded, blamed for its errors."""

import hashlib
import linecache
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from configs.errors import RecipeError, UserCodeError

__all__ = ["UserCode", "blamed_line", "describe", "line_of_frame"]


_SHOWN: dict[str, str] = {}  # path that was loaded -> as the recipe names it
_LOADED: dict[tuple[str, bytes], dict[str, Any]] = {}  # by path and source


@dataclass(frozen=True)
class UserCode:
    """`path` as the recipe has it, relative to the working directory; `name` of the class in it."""

    path: Path
    name: str

    @classmethod
    def of(cls, kind: str) -> "UserCode":
        """From FILE.py:NAME."""
        path, _, name = kind.rpartition(":")
        return cls(Path(path).expanduser(), name)

    def read(self, path: Path | None = None) -> bytes:
        """The source, of the file or of a copy of it. Raises RecipeError where it cannot be read."""
        try:
            return (path or self.path).read_bytes()
        except OSError as error:
            raise RecipeError(
                f"model.kind: {path or self.path} cannot be read ({error.strerror}, working directory {Path.cwd()})"
            ) from error

    def sha256(self) -> str:
        """Of the source."""
        return hashlib.sha256(self.read()).hexdigest()

    def copy_in(self, folder: Path, sha256: str) -> Path:
        """Where a run keeps the source, so that its workers, on any host and after any edit, run this one."""
        return folder / sha256[:12] / self.path.name

    def load(self, copy: Path | None = None) -> type[Any]:
        """The class. Raises RecipeError or UserCodeError, which shows the user's own line.

        `copy`: what is loaded in the file's place. Its folder comes last on the path: whatever lies there, our modules
        and installed ones are found first.
        """
        path = copy or self.path
        source = self.read(path)
        key = (str(path.absolute()), source)
        if key not in _LOADED:
            _LOADED[key] = self._execute(path.absolute(), source)
        names = _LOADED[key]
        found = names.get(self.name)
        if isinstance(found, type):
            return found
        own = names["__name__"]
        classes = [each for each, value in names.items() if isinstance(value, type) and value.__module__ == own]
        raise RecipeError(f"model.kind: {self.path} has no class {self.name}; it has {', '.join(classes) or 'none'}")

    def _execute(self, path: Path, source: bytes) -> dict[str, Any]:
        """These very bytes are what is hashed and what runs: no bytecode of an earlier edit, no second reading."""
        _SHOWN[str(path)] = str(self.path)
        folder = str(self.path.absolute().parent)
        if folder not in sys.path:
            sys.path.append(folder)
        module = ModuleType(f"stoker_user_{self.path.stem}_{hashlib.sha256(source).hexdigest()[:8]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # dataclasses and pydantic look their module up there
        linecache.checkcache(str(path))
        try:
            exec(compile(source, path, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            raise UserCodeError(describe(error)) from error
        return vars(module)


def describe(error: BaseException) -> str:
    """What is wrong, and the user's line."""
    if isinstance(error, SyntaxError) and error.filename in _SHOWN:
        return f"{_SHOWN[error.filename]}:{error.lineno}: {error.msg}: `{(error.text or '').strip()}`"
    place = blamed_line(error)
    return f"{type(error).__name__}: {error}" + (f" ({place})" if place else "")


def blamed_line(error: BaseException) -> str | None:
    """The innermost line of the user's file that an error came through, if it did."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _SHOWN]
    return _line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name) if frames else None


def line_of_frame(frame: FrameType | None) -> str | None:
    """The innermost line of the user's file that a running frame was called from, if it was."""
    while frame is not None and frame.f_code.co_filename not in _SHOWN:
        frame = frame.f_back
    return None if frame is None else _line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _line(path: str, number: int, function: str) -> str:
    return f"{_SHOWN[path]}:{number}, in {function}: `{linecache.getline(path, number).strip()}`"
