"""Random crops and flips, each a function of the image and a key."""

import math

import numpy as np

from configs.recipe import Augment
from data import draw
from data.images import fit, resize
from data.types import Bytes

_TRIES = 10
_AREA = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))


def augment(pixels_HWC: Bytes, size: int, how: Augment, key: draw.Key) -> Bytes:
    """size×size pixels; every draw follows from `key`."""
    uniforms = draw.uniforms(1 + 4 * _TRIES, key).tolist()
    if how.resized_crop:
        pixels_HWC = _resized_crop(pixels_HWC, size, uniforms[1:])
    else:
        pixels_HWC = _padded_crop(fit(pixels_HWC, size), how.crop_padding, uniforms[1:3])
    return pixels_HWC[:, ::-1] if how.flip and uniforms[0] < 0.5 else pixels_HWC


def _padded_crop(pixels_HWC: Bytes, padding: int, uniforms: list[float]) -> Bytes:
    """Black borders, then a crop of the original size anywhere (He et al. 2016, CIFAR)."""
    if padding == 0:
        return pixels_HWC
    height, width = pixels_HWC.shape[:2]
    padded = np.pad(pixels_HWC, ((padding, padding), (padding, padding), (0, 0)))
    top, left = (int(u * (2 * padding + 1)) for u in uniforms)
    return padded[top : top + height, left : left + width]


def _resized_crop(pixels_HWC: Bytes, size: int, uniforms: list[float]) -> Bytes:
    """A random area and aspect, resized to size×size (Szegedy et al. 2015); the centre when none fits."""
    height, width = pixels_HWC.shape[:2]
    for i in range(0, len(uniforms), 4):
        area = height * width * (_AREA[0] + uniforms[i] * (_AREA[1] - _AREA[0]))
        aspect = math.exp(_LOG_ASPECT[0] + uniforms[i + 1] * (_LOG_ASPECT[1] - _LOG_ASPECT[0]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(uniforms[i + 2] * (height - crop_height + 1))
            left = int(uniforms[i + 3] * (width - crop_width + 1))
            return resize(pixels_HWC, size, size, (left, top, left + crop_width, top + crop_height))
    return fit(pixels_HWC, size)
