"""Encoded image -> pixels_HWC uint8, whole or at a fraction of its size."""

import io
import threading

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from data.arrays import Bytes

__all__ = ["IMAGE_PARTS", "decode_image"]


JPEG_PARTS = ("jpg", "jpeg")
IMAGE_PARTS = (*JPEG_PARTS, "png", "webp")
MAX_PIXELS = 178_956_970  # of Pillow, whose limit it is
EIGHTHS = 8
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # whatever the part's name says
_KEPT_BYTES = 64 << 20
# Warnings of libjpeg after which pixels are lost; Pillow says nothing of them.
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file")


class UnreadableImageError(ValueError):
    """The contents are not an image, or a damaged one; the message says what was found."""


class PixelBuffer(threading.local):
    """Memory that each thread decodes into again and again: what it holds is valid until the thread's next decode."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, size: int) -> Bytes:
        """At least `size` bytes."""
        if size <= len(self._bytes):
            return self._bytes
        # libjpeg-turbo writes around the cache, which is slower, where memory is aligned to its vectors of 32 bytes.
        new = np.empty(size + 32, np.uint8)
        new = new[(16 - new.ctypes.data) % 32 :]
        if size <= _KEPT_BYTES:
            self._bytes = new
        return new


class JpegPicture:
    """A JPEG whose header libjpeg reads."""

    def __init__(self, contents: bytes | memoryview, height: int, width: int, colours: str) -> None:
        self.height = height
        self.width = width
        self._contents = contents
        self._is_cmyk = colours in ("CMYK", "YCCK")

    def pixels(self, channels: int, eighths: int, reverse: bool, buffer: PixelBuffer) -> tuple[Bytes, int]:
        """(pixels_HWC, eighths of the full size that they have), in RGB or, with `reverse`, in BGR."""
        height, width = (-(-side * eighths // EIGHTHS) for side in (self.height, self.width))
        # libjpeg takes inks through memory of its own.
        into = None if self._is_cmyk else buffer.of(height * width * channels)
        colours = "GRAY" if channels == 1 else "BGR" if reverse else "RGB"
        try:
            pixels: Bytes = simplejpeg.decode_jpeg(
                self._contents, colours, min_height=height, min_width=width, buffer=into
            )
        except ValueError as error:
            _refuse_damage(error)
            return _open_with_pillow(self._contents).pixels(channels, eighths, reverse, buffer)
        return pixels, eighths


class PillowPicture:
    """An image that Pillow has identified."""

    def __init__(self, image: Image.Image) -> None:
        self.height = image.height
        self.width = image.width
        self._image = image

    def pixels(self, channels: int, eighths: int, reverse: bool, buffer: PixelBuffer) -> tuple[Bytes, int]:
        """As of JpegPicture, but at full size whatever `eighths`, and in memory of its own."""
        mode = "RGB" if channels == 3 else "L"
        with self._image as image:
            if image.mode.startswith(("I", "F")):
                raise UnreadableImageError(f"pixels of more than 8 bits (mode {image.mode})")
            try:
                raw = image.convert(mode).tobytes("raw", "BGR" if channels == 3 and reverse else mode)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise UnreadableImageError(str(error).replace("\n", " ")) from error
        return np.frombuffer(raw, np.uint8).reshape(self.height, self.width, channels), EIGHTHS


Picture = JpegPicture | PillowPicture


def open_picture(contents: bytes | memoryview, part: str) -> Picture:
    """Read the header. UnreadableImageError: unknown format, or larger than MAX_PIXELS."""
    if part not in JPEG_PARTS:
        return _open_with_pillow(contents)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(contents)
    except ValueError as error:
        _refuse_damage(error)
        return _open_with_pillow(contents)  # another format under this name, or what simplejpeg lacks
    if height * width > MAX_PIXELS:
        raise UnreadableImageError(f"{width}×{height} pixels, more than {MAX_PIXELS}")
    return JpegPicture(contents, height, width, colours)


def decode_image(contents: bytes | memoryview, part: str, channels: int) -> Bytes:
    """pixels_HWC with 1 or 3 channels. UnreadableImageError (a ValueError) says what is wrong with the contents."""
    return open_picture(contents, part).pixels(channels, EIGHTHS, reverse=False, buffer=PixelBuffer())[0]


def _open_with_pillow(contents: bytes | memoryview) -> PillowPicture:
    try:
        image = Image.open(io.BytesIO(contents), formats=_FORMATS)
    except UnidentifiedImageError as error:  # its own message names an address in memory
        raise UnreadableImageError("unknown format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(str(error).replace("\n", " ")) from error
    return PillowPicture(image)


def _refuse_damage(error: ValueError) -> None:
    if str(error).startswith(_DAMAGE):
        raise UnreadableImageError(str(error)) from error
