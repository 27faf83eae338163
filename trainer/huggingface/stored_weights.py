"""Weights as Hugging Face stores them: a folder, or one safetensors file. Headers only; nothing is unpickled."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import RecipeError
from trainer.checkpoint.safetensors_file import TensorInfo, read_header

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class StoredWeights:
    """What lies where. `config` is None for a lone file."""

    path: Path
    files: list[Path]
    tensors: dict[str, tuple[Path, TensorInfo]]
    config: dict[str, Any] | None


def open_weights(path: Path) -> StoredWeights:
    """Raises RecipeError for what is missing, damaged, or no safetensors, with what to do."""
    if not path.exists():
        raise _error(path, f"does not exist (working directory {Path.cwd()})")
    files = _files_of_folder(path) if path.is_dir() else [_checked_suffix(path)]
    tensors: dict[str, tuple[Path, TensorInfo]] = {}
    for file in files:
        tensors |= {name: (file, info) for name, info in _header(file).items()}
    config_path = (path if path.is_dir() else path.parent) / "config.json"
    if path.is_dir() and not config_path.exists():
        raise _error(path, "has no config.json: add it, or name the .safetensors file to check shapes alone")
    return StoredWeights(path, files, tensors, _json(config_path) if config_path.exists() else None)


def _files_of_folder(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        places = _json(folder / _INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise _error(folder / _INDEX, "has no weight_map of tensor to file")
        names = sorted(set(places.values()))
        # The index comes with the download: it must not lead a reader to files elsewhere.
        if outside := [name for name in names if Path(name).name != name]:
            raise _error(folder / _INDEX, f"names {outside[0]}, which is not a file of its folder")
        if missing := [name for name in names if not (folder / name).exists()]:
            raise _error(folder, f"lacks {', '.join(missing)}, named in {_INDEX}: download it again")
        return [_checked_suffix(folder / name) for name in names]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    # A folder of pickles alone gets its own message, with the way to convert them.
    for pickled in sorted(p for p in folder.iterdir() if p.suffix in _PICKLES):
        _checked_suffix(pickled)
    raise _error(folder, f"has neither {_SINGLE} nor {_INDEX}")


def _checked_suffix(path: Path) -> Path:
    if path.suffix in _PICKLES:
        raise _error(
            path,
            "is a pickle, which can run any code when it is loaded: convert it where you trust it, with transformers' "
            "AutoModel….from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and name NEW_FOLDER",
        )
    if path.suffix != ".safetensors":
        raise _error(path, "is not a .safetensors file")
    return path


def _header(path: Path) -> dict[str, TensorInfo]:
    try:
        return read_header(path)
    except ValueError as error:
        raise _error(path, f"is no whole safetensors file: {error}; download it again") from error
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _error(path, f"cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise _error(path, "is not a JSON object")
    return content


def _error(path: Path, problem: str) -> RecipeError:
    return RecipeError(f"model.init_from: {path} {problem}")
