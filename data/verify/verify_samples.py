"""Read every byte and every sample of shards and report all that is wrong, rather than stop at the first."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from configs.errors import DataError, RecipeError
from configs.recipe import Recipe
from configs.sections.data_section import RemoteReads
from configs.sections.model_section import GptModel, classes_of
from data.arrays import PROGRESS_S, Say, silent
from data.images.codecs import IMAGE_PARTS, decode_image
from data.images.image_samples import LABEL_PART, ImageSamples
from data.index.catalog import Catalog, Part
from data.index.open_catalog import open_shards
from data.index.shard_index import ShardIndex, build_index
from data.index.shard_patterns import globs_match
from data.shards.shard import Shard
from data.text import npy
from data.text.documents import open_documents
from data.verify.verify_checksums import ExpectedContents, Manifests

__all__ = ["verify_shards"]


CheckSample = Callable[[int], object]
_SAMPLES_AT_ONCE = 64
_MAX_THREADS = 16


def verify_shards(patterns: str | Sequence[str], recipe: Recipe | None, say: Say = silent) -> list[str]:
    """Problems found, one line each with shard and key or bytes; none when all is well.

    Bytes are compared with the shard's index and with manifest.json, where they are. With a recipe, samples are read
    as training reads them; without, each part is checked by what its name says. A shard that a manifest lists and a
    glob would match is missed when it is not there. DataError: a pattern matches no shard.
    """
    shards = open_shards(patterns, RemoteReads() if recipe is None else recipe.data.remote)
    progress = _Progress(len(shards), say)
    manifests = Manifests(say)
    problems: list[str] = []
    for shard in shards:
        progress.start(shard)
        problems += _verify_shard(shard, recipe, manifests, progress)
        shard.close()
    # Last, when the manifest beside every shard has been read.
    problems += manifests.missing_shards(lambda path: globs_match(patterns, path))
    if progress.incomparable:
        say(
            f"{progress.incomparable} of {len(shards)} shards have neither an index nor a manifest.json: their samples "
            "were checked, but not whether each byte is the one that was written; `stoker data index` records that"
        )
    return problems


class _Progress:
    """Lines for the user, each some seconds after the last."""

    def __init__(self, shards: int, say: Say) -> None:
        self.say = say
        self.incomparable = 0
        self._shards = shards
        self._number = 0
        self._name = ""
        self._said_at = time.monotonic()

    def start(self, shard: Shard) -> None:
        """The next shard begins."""
        self._number += 1
        self._name = shard.name
        self.at("")

    def at(self, place: str) -> None:
        """So far has it come; says so if the last line is old enough."""
        if time.monotonic() - self._said_at > PROGRESS_S:
            self.say(f"verifying shard {self._number} of {self._shards}: {self._name}{place}")
            self._said_at = time.monotonic()


def _verify_shard(shard: Shard, recipe: Recipe | None, manifests: Manifests, progress: _Progress) -> Iterator[str]:
    index: ShardIndex | None = None
    try:
        records = ExpectedContents(shard, manifests)
        progress.incomparable += not records.comparable
        try:
            index = build_index(shard, progress.say)
        except DataError as error:
            yield str(error)
        yield from records.problems(index)
    except DataError as error:
        yield str(error)  # it cannot be read at all
    if index is not None:
        yield from _verify_samples(Catalog([shard], [index]), recipe, progress)


def _verify_samples(catalog: Catalog, recipe: Recipe | None, progress: _Progress) -> Iterator[str]:
    checks, threads = _by_name(catalog), min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    if recipe is not None:
        try:
            checks, threads = _by_recipe(catalog, recipe, progress.say, threads)
        except DataError as error:
            yield str(error)  # the first sample that training would stop at; the checks by name find the others

    def check(first: int) -> list[str]:
        samples = range(first, min(first + _SAMPLES_AT_ONCE, catalog.count))
        return [problem for sample in samples for problem in _problems(checks, sample)]

    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        for number, problems in enumerate(pool.map(check, range(0, catalog.count, _SAMPLES_AT_ONCE))):
            progress.at(f", {number * _SAMPLES_AT_ONCE} of {catalog.count} samples")
            yield from problems


def _problems(checks: Sequence[CheckSample], sample: int) -> Iterator[str]:
    for check in checks:
        try:
            check(sample)
        except DataError as error:
            yield str(error)


def _by_recipe(catalog: Catalog, recipe: Recipe, say: Say, threads: int) -> tuple[list[CheckSample], int]:
    """Checks, and how many threads may run them."""
    data, model = recipe.data, recipe.model
    if data.kind == "image":
        if isinstance(model, GptModel):
            raise RecipeError(f"data.kind is image, which model.kind {model.kind} does not train on")
        images = ImageSamples(catalog, data.channels, classes_of(model))
        return [images.image, images.label], threads
    documents = open_documents(catalog, data, say)
    return [lambda sample: documents.read(sample, 0, int(documents.lengths[sample]))], 1


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
