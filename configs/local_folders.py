"""The folders of a recipe's files: what every host of a cluster, and a container there, must see. Pure."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from configs.reading.user_code import UserCode
from configs.recipe import Recipe
from configs.sections.model_section import UserModel

__all__ = ["local_folders", "outermost"]


_PATTERN = re.compile(r"[*?\[{]")


def local_folders(recipe: Recipe, working_folder: Path) -> list[Path]:
    """Absolute, sorted, none inside another. Of shards, weights and a tokenizer it is the folder that they lie in."""
    data = recipe.data
    shards = [*(source.shards for source in data.train.sources), data.val.shards if data.val else []]
    files = [name for names in shards for name in ([names] if isinstance(names, str) else names)]
    own = UserCode.of(recipe.model.kind).path if isinstance(recipe.model, UserModel) else ""
    files += [getattr(data, "tokenizer", None) or "", recipe.model.init_from or "", str(own)]
    folders = [*map(_folder_of, files), recipe.run.dir, recipe.checkpoint.dir or ""]
    paths = [working_folder / Path(name).expanduser() for name in folders if "://" not in name]
    return outermost(Path(os.path.normpath(path)) for path in paths)


def outermost(folders: Iterable[Path]) -> list[Path]:
    """Sorted, without those that lie inside another one."""
    kept: list[Path] = []
    for folder in sorted(folders):
        if not kept or not folder.is_relative_to(kept[-1]):
            kept.append(folder)
    return kept


def _folder_of(pattern: str) -> str:
    """The part before the first piece with a glob or a brace; an URL as it is."""
    if "://" in pattern:
        return pattern
    return _PATTERN.split(pattern)[0].rpartition("/")[0]
