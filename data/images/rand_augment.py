"""RandAugment (Cubuk et al. 2020): random operations of one strength, with Pillow. Pure."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from configs.sections.data_section import RandAugment
from data.arrays import Bytes

DRAWS_PER_OPERATION = 2
MAX_MAGNITUDE = 30
_MAX_SHEAR = 0.3
_MAX_SHIFT = 150 / 331  # of the side
_MAX_DEGREES = 30.0
_MAX_FACTOR = 0.9
_MAX_BITS_LOST = 4

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _shear_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, _MAX_SHEAR * strength, 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, _MAX_SHEAR * strength, 1, 0)


def _translate_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, _MAX_SHIFT * strength * image.width, 0, 1, 0)


def _translate_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _MAX_SHIFT * strength * image.height)


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(_MAX_DEGREES * strength, Image.Resampling.BILINEAR)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength: kind(image).enhance(1 + _MAX_FACTOR * strength)


def _posterize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(_MAX_BITS_LOST * abs(strength)))


def _solarize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.solarize(image, math.ceil(256 * (1 - abs(strength))))


# torchvision's table (transforms.RandAugment). The strength is -1 … 1; its sign counts where there is a direction.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}
_NAMES = tuple(OPERATIONS)


def rand_augment(pixels_HWC: Bytes, settings: RandAugment, uniforms: Sequence[float]) -> Bytes:
    """`settings.operations` operations, drawn with replacement by `uniforms` (DRAWS_PER_OPERATION each, in [0, 1)).

    What comes in at the borders is black. Bilinear, as torchvision's recipes have it.
    """
    image = Image.fromarray(pixels_HWC if pixels_HWC.shape[2] == 3 else pixels_HWC[:, :, 0])
    for which, sign in random_operations(settings, uniforms):
        image = OPERATIONS[which](image, sign * settings.magnitude / MAX_MAGNITUDE)
    return np.asarray(image).reshape(pixels_HWC.shape)


def random_operations(settings: RandAugment, uniforms: Sequence[float]) -> list[tuple[str, int]]:
    """(name, sign) of each operation in turn."""
    pairs = [uniforms[i : i + DRAWS_PER_OPERATION] for i in range(0, DRAWS_PER_OPERATION * settings.operations, 2)]
    return [(_NAMES[int(which * len(_NAMES))], 1 if sign < 0.5 else -1) for which, sign in pairs]
