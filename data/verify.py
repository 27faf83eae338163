"""Read every sample of shards and report all that is wrong, rather than stop at the first."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from configs.errors import DataError, RecipeError
from configs.recipe import Recipe, ResnetModel
from data import npy
from data.catalog import PROGRESS_S, Catalog, Part
from data.decode import LABEL_PART, ImageSamples
from data.documents import open_documents
from data.images import IMAGE_PARTS, decode_image
from data.shards import expand
from data.tar_index import build_index, read_kept_index
from data.types import Say, silent

CheckSample = Callable[[int], object]


def verify(patterns: str | Sequence[str], recipe: Recipe | None, say: Say = silent) -> list[str]:
    """Problems found, one line each with shard and key; none when all is well.

    With a recipe, samples are read as training reads them; without, each part is checked by what its name says.
    DataError: a pattern matches no shard.
    """
    shards = expand(patterns)
    problems: list[str] = []
    said = time.monotonic()
    for number, shard in enumerate(shards):
        if time.monotonic() - said > PROGRESS_S:
            say(f"verifying shard {number + 1} of {len(shards)}: {shard}")
            said = time.monotonic()
        problems += _verify_shard(shard, recipe, say)
    return problems


def _verify_shard(shard: Path, recipe: Recipe | None, say: Say) -> Iterator[str]:
    try:
        index = build_index(shard)
        kept = read_kept_index(shard)
    except DataError as error:
        yield str(error)
        return
    if kept is not None and kept.headers_crc32 != index.headers_crc32:
        yield f"{shard}: its contents changed but not its size or time: remove the files {shard.name}.stoker-*"
    catalog = Catalog([shard], [index])
    checks = _by_name(catalog)
    if recipe is not None:
        try:
            checks = _by_recipe(catalog, recipe, say)
        except DataError as error:
            yield str(error)  # the first sample that training would stop at; the checks by name find the others
    for sample in range(catalog.count):
        for check in checks:
            try:
                check(sample)
            except DataError as error:
                yield str(error)
    catalog.fetcher.close()


def _by_recipe(catalog: Catalog, recipe: Recipe, say: Say) -> list[CheckSample]:
    data, model = recipe.data, recipe.model
    if data.kind == "image":
        if not isinstance(model, ResnetModel):
            raise RecipeError(f"data.kind is image, which model.kind {model.kind} does not train on")
        images = ImageSamples(catalog, data.channels, model.classes)
        return [images.image, images.label]
    documents = open_documents(catalog, data, say)
    return [lambda sample: documents.read(sample, 0, int(documents.lengths[sample]))]


def _by_name(catalog: Catalog) -> list[CheckSample]:
    return [_part_check(catalog, catalog.part(name)) for name in catalog.indexes[0].part_names]


def _part_check(catalog: Catalog, part: Part) -> CheckSample:
    def check(sample: int) -> None:
        if part.sizes[sample] < 0:
            return
        contents = catalog.read(part, sample)
        try:
            check_part(part.name, contents)
        except ValueError as error:
            raise DataError(
                f"{catalog.where(sample)}: part {part.name} ({len(contents)} bytes) is damaged ({error}): "
                "replace it or drop the sample"
            ) from error

    return check


def check_part(name: str, contents: bytes) -> None:
    """ValueError when the contents are not what the part's name says; names without a meaning pass."""
    kind = name.rsplit(".", 1)[-1]
    if kind in IMAGE_PARTS:
        decode_image(contents, kind, 3)
    elif kind == LABEL_PART:
        int(contents)
    elif kind == "json":
        json.loads(contents)
    elif kind == "txt":
        contents.decode()
    elif kind == "npy":
        npy.parse_header(contents, len(contents))
