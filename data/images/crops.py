"""Which part of a picture becomes the square that a model sees: crops and flips. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from configs.sections.data_section import Augment
from data.images.codecs import EIGHTHS

Box = tuple[float, float, float, float]

# The shorter side before the centre crop, relative to the crop (Krizhevsky et al. 2012: 256 to 224).
_SHORT_SIDE = 256 / 224
_TRIES = 10
_AREA = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_FLIP = 0
_CROP_DRAWS = slice(1, 1 + 4 * _TRIES)
DRAWS = _CROP_DRAWS.stop
# libjpeg-turbo has vector code for these only: at 3, 5, 6 and 7 eighths it is slower than at the next of them.
_FAST_EIGHTHS = (1, 2, 4)


class Crop(NamedTuple):
    """`box` (left, top, right, bottom; pixels of the full picture) resized to size×size.

    The square is then moved right and down by `shift_x` and `shift_y`, black where it was, and mirrored left–right.
    """

    size: int
    box: Box
    shift_x: int = 0
    shift_y: int = 0
    mirrored: bool = False

    @property
    def resizes(self) -> bool:
        """False when the box already is size×size whole pixels."""
        left, top, right, bottom = self.box
        whole = left == int(left) and top == int(top)
        return not (whole and right - left == self.size and bottom - top == self.size)

    def eighths(self, height: int, width: int) -> int:
        """The least of 1, 2, 4, 8 eighths of a height×width picture at which the box still has size×size pixels."""
        left, top, right, bottom = self.box
        if self.resizes and min(height, width) >= EIGHTHS:
            for eighths in _FAST_EIGHTHS:
                if min(right - left, bottom - top) * eighths >= self.size * EIGHTHS:
                    return eighths
        return EIGHTHS


def centre_crop(height: int, width: int, size: int) -> Crop:
    """As it is when already size×size; otherwise the shorter side to size·256/224, then the centre size×size."""
    if (height, width) == (size, size):
        return Crop(size, (0, 0, size, size))
    scale = round(size * _SHORT_SIDE) / min(height, width)
    resized_height, resized_width = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = (resized_height - size) // 2, (resized_width - size) // 2
    x, y = width / resized_width, height / resized_height
    return Crop(size, (left * x, top * y, (left + size) * x, (top + size) * y))


def random_crop(height: int, width: int, size: int, augment: Augment, uniforms: Sequence[float]) -> Crop:
    """What the first DRAWS of `uniforms` (in [0, 1)) make of `augment`."""
    mirrored = augment.flip and uniforms[_FLIP] < 0.5
    if augment.resized_crop:
        return _resized_crop(height, width, size, mirrored, uniforms[_CROP_DRAWS])
    crop = centre_crop(height, width, size)
    if not augment.crop_padding:
        return Crop(size, crop.box, mirrored=mirrored)
    # Black borders, then a crop of the original size anywhere (He et al. 2016, CIFAR).
    top, left = (int(u * (2 * augment.crop_padding + 1)) for u in uniforms[_CROP_DRAWS][:2])
    return Crop(size, crop.box, augment.crop_padding - left, augment.crop_padding - top, mirrored)


def _resized_crop(height: int, width: int, size: int, mirrored: bool, uniforms: Sequence[float]) -> Crop:
    """A random area and aspect, resized to size×size (Szegedy et al. 2015); the centre when none fits."""
    for i in range(0, len(uniforms), 4):
        area = height * width * (_AREA[0] + uniforms[i] * (_AREA[1] - _AREA[0]))
        aspect = math.exp(_LOG_ASPECT[0] + uniforms[i + 1] * (_LOG_ASPECT[1] - _LOG_ASPECT[0]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(uniforms[i + 2] * (height - crop_height + 1))
            left = int(uniforms[i + 3] * (width - crop_width + 1))
            return Crop(size, (left, top, left + crop_width, top + crop_height), mirrored=mirrored)
    return Crop(size, centre_crop(height, width, size).box, mirrored=mirrored)
