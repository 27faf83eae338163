"""Opening and reading sources of tokens, for the tests of them."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from configs.recipe import Recipe
from data.arrays import Array, Ints, silent
from data.index.open_catalog import open_catalog
from data.source import Skipped
from data.text.text_source import TextSource, open_text_source

MakeRecipe = Callable[..., Recipe]
MakeShard = Callable[..., Path]

PACKINGS = [{"packing": packing, "document_mask": mask} for packing in ("concat", "best_fit") for mask in (False, True)]


def open_source(recipe: Recipe, seed: int | None = 1, say: Callable[[str], None] = silent) -> TextSource:
    return open_text_source("train", open_catalog(recipe.data.train.sources[0].shards), recipe, seed, say)


def read(source: TextSource, items: range | list[int] | Ints) -> tuple[dict[str, Array], list[Skipped]]:
    arrays = source.blank(len(items))
    return arrays, source.fill(np.array(items), np.arange(len(items)), arrays)


def read_all(source: TextSource, micro: int) -> tuple[dict[str, Array], list[list[Skipped]]]:
    parts = [read(source, range(start, min(start + micro, source.count))) for start in range(0, source.count, micro)]
    arrays = {name: np.concatenate([arrays[name] for arrays, _ in parts]) for name in parts[0][0]}
    return arrays, [skipped for _, skipped in parts]


def ranges(key: str) -> list[tuple[str, int, int]]:
    pieces = [re.fullmatch(r"(.*)\[(\d+):(\d+)\]", piece) for piece in key.split("|")]
    return [(piece[1], int(piece[2]), int(piece[3])) for piece in pieces if piece]


def save(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tokenizer(folder: Path) -> Path:
    """Words hello and world, and <unk>."""
    vocab = {"<unk>": 0, "hello": 1, "world": 2, "</s>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(1)  # a setting of the file that must not shorten documents
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
