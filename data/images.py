"""Encoded image -> pixels_HWC uint8, and fitting to a square."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from data.types import Bytes

JPEG_PARTS = ("jpg", "jpeg")
IMAGE_PARTS = (*JPEG_PARTS, "png", "webp")
# The shorter side before the centre crop, relative to the crop (Krizhevsky et al. 2012: 256 to 224).
_SHORT_SIDE = 256 / 224


def decode_image(contents: bytes, part: str, channels: int) -> Bytes:
    """pixels_HWC with 1 or 3 channels. ValueError says what is wrong with the contents."""
    if part in JPEG_PARTS:
        try:
            pixels: Bytes = simplejpeg.decode_jpeg(contents, "RGB" if channels == 3 else "GRAY")
        except ValueError:
            return _decode_with_pillow(contents, channels)  # colour spaces that simplejpeg lacks, as CMYK
        return pixels
    return _decode_with_pillow(contents, channels)


def _decode_with_pillow(contents: bytes, channels: int) -> Bytes:
    try:
        with Image.open(io.BytesIO(contents)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of more than 8 bits (mode {image.mode})")
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except UnidentifiedImageError as error:  # its own message names an address in memory
        raise ValueError("unknown format") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).replace("\n", " ")) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def fit(pixels_HWC: Bytes, size: int) -> Bytes:
    """As it is when already size×size; otherwise the shorter side to size·256/224, then the centre size×size."""
    height, width = pixels_HWC.shape[:2]
    if (height, width) == (size, size):
        return pixels_HWC
    scale = round(size * _SHORT_SIDE) / min(height, width)
    resized = resize(pixels_HWC, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]


def resize(pixels_HWC: Bytes, height: int, width: int, box: tuple[int, int, int, int] | None = None) -> Bytes:
    """Bilinear with antialiasing; `box` (left, top, right, bottom) is cut out first."""
    channels = pixels_HWC.shape[2]
    image = Image.fromarray(pixels_HWC if channels == 3 else pixels_HWC[:, :, 0])
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(height, width, channels)
