"""The samples of benchmarks.data, as tars: JPEG images of about 19 KB with labels, and text of about 2.4 KB."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

PARTS = {"jpeg": ("jpg", "cls"), "text": ("txt",)}
PIXELS = 256
CROP_PADDING = 16  # of the decode contest
CLASSES = 1000
TEXT_BYTES = 2400  # of a text, on average
IMAGES, IMAGES_PER_SHARD = 8192, 1024
TEXTS, TEXTS_PER_SHARD = 32768, 4096
Sample = dict[str, bytes]
_DISTINCT_IMAGES = 512
_FIELD = 1024
_JPEG_QUALITY = 85
_CONTRAST = (20.0, 100.0)
_SPECTRUM = 1.3


def make_shards(folder: Path) -> None:
    """FOLDER/jpeg/*.tar with parts jpg and cls, FOLDER/text/*.tar with part txt: the same bytes each time."""
    _write_shards(folder / "jpeg", _images(IMAGES), IMAGES_PER_SHARD)
    _write_shards(folder / "text", _texts(), TEXTS_PER_SHARD)


def make_shard_of_images(path: Path, images: int) -> None:
    """One tar like those of FOLDER/jpeg."""
    _write(path, enumerate(_images(images)))


def shards(folder: Path, kind: str) -> list[str]:
    """The tars of `kind` (jpeg or text), in order."""
    return sorted(str(path) for path in (folder / kind).glob("*.tar"))


def _write_shards(folder: Path, samples: Iterator[Sample], per_shard: int) -> None:
    folder.mkdir(parents=True)
    numbered, shard = enumerate(samples), count()
    while piece := list(islice(numbered, per_shard)):
        _write(folder / f"train-{next(shard):06d}.tar", piece)


def _write(path: Path, samples: Iterable[tuple[int, Sample]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, parts in samples:
            for part, contents in parts.items():
                header = tarfile.TarInfo(f"sample-{number:08d}.{part}")
                header.size = len(contents)
                tar.addfile(header, io.BytesIO(contents))


def _images(total: int) -> Iterator[Sample]:
    random = np.random.default_rng(1)
    field_HWC = _natural_image(random)
    distinct = [_jpeg(field_HWC, random) for _ in range(_DISTINCT_IMAGES)]
    for number in range(total):
        yield {"jpg": distinct[number % _DISTINCT_IMAGES], "cls": str(number % CLASSES).encode()}


def _natural_image(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Colours with an amplitude spectrum like that of photographs, about 1/f (Field 1987), of unit variance."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_FIELD), np.fft.fftfreq(_FIELD)))
    frequency[0, 0] = np.inf
    noise_HWC = random.standard_normal((_FIELD, _FIELD, 3))
    field_HWC = np.fft.ifft2(np.fft.fft2(noise_HWC, axes=(0, 1)) / frequency[:, :, None] ** _SPECTRUM, axes=(0, 1)).real
    grey_HW1 = field_HWC.mean(axis=2, keepdims=True)
    field_HWC = grey_HW1 + 0.3 * (field_HWC - grey_HW1)  # channels of photographs agree for the most part
    return np.asarray(field_HWC / field_HWC.std())


def _jpeg(field_HWC: npt.NDArray[np.float64], random: np.random.Generator) -> bytes:
    top, left = random.integers(0, _FIELD - PIXELS, 2)
    patch_HWC = field_HWC[top : top + PIXELS, left : left + PIXELS]
    file = io.BytesIO()
    pixels_HWC = np.clip(128 + random.uniform(*_CONTRAST) * patch_HWC, 0, 255).astype(np.uint8)
    Image.fromarray(pixels_HWC).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _texts() -> Iterator[Sample]:
    random = np.random.default_rng(2)
    letters = np.frombuffer(b"etaoin shrdlu cmfwyp\n", np.uint8)
    sizes = random.integers(TEXT_BYTES // 2, TEXT_BYTES * 3 // 2, TEXTS)
    text = letters[random.integers(0, len(letters), int(sizes.max()) + TEXTS)].tobytes()
    for number, size in enumerate(sizes.tolist()):
        yield {"txt": text[number : number + size]}
