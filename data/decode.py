"""Sample -> image and label, with errors that name the shard, the sample and the part."""

import re

import numpy as np

from configs.errors import DataError
from data.catalog import Catalog
from data.images import IMAGE_PARTS, decode_image
from data.types import Bytes

LABEL_PART = "cls"
_INTEGER = re.compile(rb"-?[0-9]{1,18}")


class ImageSamples:
    """Images and labels of a catalog; the image is the first part of jpg, jpeg, png, webp that a sample has."""

    def __init__(self, catalog: Catalog, channels: int, classes: int) -> None:
        self._catalog = catalog
        self._channels = channels
        self._classes = classes
        self._images = [catalog.part(name) for name in IMAGE_PARTS]
        has_image = np.stack([part.sizes for part in self._images]) >= 0
        catalog.refuse_missing(has_image.sum(axis=0) == 0, f"an image ({', '.join(IMAGE_PARTS)})")
        self._image_of = np.argmax(has_image, axis=0)
        self._labels = catalog.required_part(LABEL_PART)

    def image(self, sample: int) -> Bytes:
        """pixels_HWC. DataError when it cannot be decoded."""
        part = self._images[self._image_of[sample]]
        contents = self._catalog.read(part, sample)
        try:
            return decode_image(contents, part.name, self._channels)
        except ValueError as error:
            raise DataError(
                f"{self._catalog.where(sample)}: part {part.name} ({len(contents)} bytes) is not an image that can be "
                f"read ({error}): replace it or drop the sample"
            ) from error

    def label(self, sample: int) -> int:
        """0 … classes-1. DataError when it is not an integer, or outside."""
        text = self._catalog.read(self._labels, sample).strip()
        if not _INTEGER.fullmatch(text):
            raise DataError(
                f"{self._catalog.where(sample)}: part {LABEL_PART} is {text[:40]!r}, not an integer: "
                f"write the class number, 0 … {self._classes - 1}"
            )
        if not 0 <= int(text) < self._classes:
            raise DataError(
                f"{self._catalog.where(sample)}: part {LABEL_PART} is {int(text)}, outside 0 … {self._classes - 1}: "
                f"correct the label, or model.classes ({self._classes})"
            )
        return int(text)
