"""Images with labels, by position."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from configs.recipe import ImageData
from data.augment import augment
from data.batch import Rows
from data.catalog import Catalog
from data.decode import ImageSamples
from data.images import fit
from data.stream import SampleStream
from data.types import Bytes, Ints

IGNORED = -100


class ImageDataset:
    """images_BHWC uint8 and labels_B int64. Shuffled and augmented with a seed; in shard order, plain, with None."""

    def __init__(self, catalog: Catalog, data: ImageData, classes: int, seed: int | None, threads: int) -> None:
        self.catalog = catalog
        self.fingerprint = catalog.fingerprint
        self.count = catalog.count
        self._data = data
        self._seed = seed
        self._samples = ImageSamples(catalog, data.channels, classes)
        self._stream = SampleStream(catalog.blocks(), data.shuffle_window_bytes, catalog.fingerprint, seed)
        self._threads = ThreadPoolExecutor(threads, "decode") if threads > 1 else None

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        """Images at positions start … stop-1, then blanks: zeros labelled -100."""
        images_BHWC, labels_B = self._blanks(pad_to)
        located = self._stream.locate(start, stop)
        places = zip(located.epochs.tolist(), located.sample_ids.tolist(), strict=True)
        load = map if self._threads is None else self._threads.map
        for row, (pixels_HWC, label) in enumerate(load(self._load, places)):
            images_BHWC[row] = pixels_HWC
            labels_B[row] = label
        return Rows({"images_BHWC": images_BHWC, "labels_B": labels_B}, stop - start)

    def keys(self, start: int, stop: int) -> list[str]:
        """The key of the sample at each position."""
        return [self.catalog.key(sample) for sample in self._stream.locate(start, stop).sample_ids.tolist()]

    def close(self) -> None:
        """Stop the decode threads and let go of open files."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self.catalog.fetcher.close()

    def _load(self, place: tuple[int, int]) -> tuple[Bytes, int]:
        epoch, sample = place
        pixels_HWC = self._samples.image(sample)
        if self._seed is None:
            return fit(pixels_HWC, self._data.size), self._samples.label(sample)
        key = ("augment", self._seed, epoch, sample)
        return augment(pixels_HWC, self._data.size, self._data.augment, key), self._samples.label(sample)

    def _blanks(self, rows: int) -> tuple[Bytes, Ints]:
        size = self._data.size
        return np.zeros((rows, size, size, self._data.channels), np.uint8), np.full(rows, IGNORED, np.int64)
