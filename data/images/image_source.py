"""Images with labels, by item number."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from configs.errors import DamagedDataError, RecipeError
from configs.recipe import Recipe
from configs.sections.data_section import ImageData
from configs.sections.model_section import GptModel, classes_of
from data.arrays import Array, Bytes, Ints
from data.images.codecs import PixelBuffer, UnreadableImageError, open_picture
from data.images.crops import DRAWS, Crop, centre_crop, random_crop
from data.images.image_samples import ImageSamples
from data.images.rand_augment import DRAWS_PER_OPERATION, rand_augment
from data.images.resize import write_crop
from data.images.sample_draws import uniforms
from data.index.catalog import Catalog, Part
from data.order.epochs import LocatedSamples, SampleStream
from data.source import IGNORED, Skipped, skipped_sample

__all__ = ["open_image_source", "with_images"]


def with_images(arrays: dict[str, Array]) -> dict[str, Array]:
    """The rows that have an image, so that statistics over a batch are of images alone; all where none has."""
    has_image_B = arrays["labels_B"] != IGNORED
    return {name: array[has_image_B] for name, array in arrays.items()} if has_image_B.any() else arrays


class _DecodeJob(NamedTuple):
    """Item number `at` of those asked for."""

    at: int
    sample: int
    part: Part
    row: int
    draws: Sequence[float]


class ImageSource:
    """images_BHWC uint8 and labels_B int64. Shuffled and augmented with a seed; in shard order, plain, with None.

    Augmentation is drawn by (name, fingerprint, seed, epoch, sample): it depends on nothing else.
    """

    def __init__(
        self, name: str, catalog: Catalog, data: ImageData, classes: int, seed: int | None, threads: int
    ) -> None:
        self.name = name
        self.catalog = catalog
        self.fingerprint = catalog.fingerprint
        self.count = catalog.count
        self._data = data
        self._augment = data.augment if seed is not None else None
        self._key = ("augment", name, catalog.fingerprint, str(seed))
        self._samples = ImageSamples(catalog, data.channels, classes)
        lanes = data.lanes if seed is not None else 1
        self._stream = SampleStream(catalog.blocks(), data.shuffle_window_bytes, catalog.fingerprint, seed, lanes)
        self._buffer = PixelBuffer()
        self._thread_count = threads
        self._threads = ThreadPoolExecutor(threads, "decode") if threads > 1 else None

    def blank(self, rows: int) -> dict[str, Array]:
        """Black images labelled -100."""
        size = self._data.size
        images_BHWC = np.zeros((rows, size, size, self._data.channels), np.uint8)
        return {"images_BHWC": images_BHWC, "labels_B": np.full(rows, IGNORED, np.int64)}

    def prefetch(self, items: Ints) -> None:
        """See data.source.Source."""
        self.catalog.prefetch(self._stream.locate(items).sample_ids)

    def fill(self, items: Ints, rows: Ints, arrays: dict[str, Array]) -> list[Skipped]:
        """See data.source.Source. DataError, with on_error stop, is about the first bad item in the order given."""
        located = self._stream.locate(items)
        jobs = self._jobs(located, rows)
        failures: dict[int, DamagedDataError] = {}
        if self._threads is None:
            self._fill_rows(jobs, arrays, failures)
        else:
            tasks = [self._threads.submit(self._fill_rows, jobs, arrays, failures) for _ in range(self._thread_count)]
            for task in tasks:
                task.result()
        if failures and self._data.on_error == "stop":
            raise failures[min(failures)]
        bad = [(int(located.sample_ids[at]), failures[at]) for at in sorted(failures)]
        return [skipped_sample(self.catalog, sample, self.catalog.cause(sample, error)) for sample, error in bad]

    def keys(self, items: Ints) -> list[str]:
        """The key of each item's sample."""
        return [self.catalog.key(sample) for sample in self._stream.locate(items).sample_ids.tolist()]

    def left_out(self) -> list[Skipped]:
        """None: every image is an item."""
        return []

    def close(self) -> None:
        """Stop the decode threads and let go of open files."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self.catalog.close()

    def _jobs(self, located: LocatedSamples, rows: Ints) -> Iterator[_DecodeJob]:
        """In the order in which the samples lie. Threads may share it: it is the iterator of a list."""
        samples = located.sample_ids
        columns = samples.tolist(), self._samples.image_parts(samples), rows.tolist(), self._draws(located)
        jobs = [_DecodeJob(*fields) for fields in zip(range(len(samples)), *columns, strict=True)]
        # As they lie on the disk: neighbours are often in the same checked block or piece.
        return iter([jobs[at] for at in np.argsort(samples, kind="stable").tolist()])

    def _draws(self, located: LocatedSamples) -> Sequence[Sequence[float]]:
        """In [0, 1), for each item all that its augmentation may need."""
        if self._augment is None:
            return [()] * len(located.sample_ids)
        operations = self._augment.rand_augment.operations if self._augment.rand_augment else 0
        count = DRAWS + DRAWS_PER_OPERATION * operations
        draws: Sequence[Sequence[float]] = uniforms(count, self._key, located.epochs, located.sample_ids).tolist()
        return draws

    def _fill_rows(
        self, jobs: Iterator[_DecodeJob], arrays: dict[str, Array], failures: dict[int, DamagedDataError]
    ) -> None:
        """Do jobs until there are no more; the row of a bad sample stays as it is."""
        images_BHWC, labels_B = arrays["images_BHWC"], arrays["labels_B"]
        for job in jobs:
            try:
                # Before the image: a sample with a bad label costs no decoding.
                label = self._samples.label(job.sample)
                self._decode_into(job, images_BHWC[job.row])
            except DamagedDataError as error:
                failures[job.at] = error
            else:
                labels_B[job.row] = label

    def _decode_into(self, job: _DecodeJob, row_HWC: Bytes) -> None:
        """Read, decode, crop, mirror and augment. DamagedDataError before the row is touched."""
        contents = self.catalog.view(job.part, job.sample)
        try:
            picture = open_picture(contents, job.part.name)
            crop = self._crop(picture.height, picture.width, job.draws)
            eighths = crop.eighths(picture.height, picture.width)
            pixels_HWC, eighths = picture.pixels(self._data.channels, eighths, crop.mirrored, self._buffer)
        except UnreadableImageError as error:
            raise self._samples.unreadable(job.sample, job.part, error) from error
        write_crop(pixels_HWC, eighths, crop, row_HWC)
        if self._augment is not None and self._augment.rand_augment is not None:
            row_HWC[:] = rand_augment(row_HWC, self._augment.rand_augment, job.draws[DRAWS:])

    def _crop(self, height: int, width: int, draws: Sequence[float]) -> Crop:
        if self._augment is None:
            return centre_crop(height, width, self._data.size)
        return random_crop(height, width, self._data.size, self._augment, draws)


def open_image_source(name: str, catalog: Catalog, recipe: Recipe, seed: int | None) -> ImageSource:
    """Images of the catalog as the recipe has them. DataError: a sample has no image, or no label."""
    data, model = recipe.data, recipe.model
    if not isinstance(data, ImageData) or isinstance(model, GptModel):
        raise RecipeError(f"data.kind is {data.kind}, which model.kind {model.kind} does not train on")
    return ImageSource(name, catalog, data, classes_of(model), seed, recipe.workers.threads)
