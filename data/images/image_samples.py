"""Sample -> image and label, with errors that name the shard, the sample and the part."""

import re

import numpy as np

from configs.errors import DamagedDataError
from data.arrays import Bytes, Ints
from data.images.codecs import IMAGE_PARTS, UnreadableImageError, decode_image
from data.index.catalog import Catalog, Part

__all__ = ["LABEL_PART", "ImageSamples"]


LABEL_PART = "cls"
_INTEGER = re.compile(rb"-?[0-9]{1,18}")


class ImageSamples:
    """Images and labels of a catalog; the image is the first part of jpg, jpeg, png, webp that a sample has."""

    def __init__(self, catalog: Catalog, channels: int, classes: int) -> None:
        self._catalog = catalog
        self._channels = channels
        self._classes = classes
        catalog.require_one_of(IMAGE_PARTS, f"an image ({', '.join(IMAGE_PARTS)})")
        present = {name for index in catalog.indexes for name in index.part_names}
        self._images = [catalog.part(name) for name in IMAGE_PARTS if name in present]
        self._labels = catalog.required_part(LABEL_PART)

    def image_parts(self, samples: Ints) -> list[Part]:
        """The part that is the image of each sample."""
        if len(self._images) == 1:
            return self._images * len(samples)
        has_part = np.stack([part.sizes.take(samples) >= 0 for part in self._images])
        return [self._images[number] for number in np.argmax(has_part, axis=0).tolist()]

    def image(self, sample: int) -> Bytes:
        """pixels_HWC. DamagedDataError when it cannot be read or decoded."""
        (part,) = self.image_parts(np.array([sample]))
        contents = self._catalog.view(part, sample)
        try:
            return decode_image(contents, part.name, self._channels)
        except UnreadableImageError as error:
            raise self.unreadable(sample, part, error) from error

    def label(self, sample: int) -> int:
        """0 … classes-1. DamagedDataError when it cannot be read, is not an integer, or outside."""
        text = self._catalog.read(self._labels, sample).strip()
        if not _INTEGER.fullmatch(text):
            raise DamagedDataError(
                f"{self._catalog.where(sample)}: part {LABEL_PART} is {text[:40]!r}, not an integer: "
                f"write the class number, 0 … {self._classes - 1}"
            )
        if not 0 <= int(text) < self._classes:
            raise DamagedDataError(
                f"{self._catalog.where(sample)}: part {LABEL_PART} is {int(text)}, outside 0 … {self._classes - 1}: "
                f"correct the label, or model.classes ({self._classes})"
            )
        return int(text)

    def unreadable(self, sample: int, part: Part, error: UnreadableImageError) -> DamagedDataError:
        """What to tell the user of an image that cannot be decoded."""
        return DamagedDataError(
            f"{self._catalog.where(sample)}: part {part.name} ({part.sizes[sample]} bytes) is not an image that can be "
            f"read ({error}): replace it or drop the sample"
        )
