"""CPU time of the decoder alone over that of an image source, which reads, decodes, crops and flips into a batch.

`python -m benchmarks.data.decode [--threads N]` prints a table; the goal is 0.95 of the decoder where nothing is
resized.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.common.command import parser_of
from configs.recipe import Recipe
from data.arrays import Bytes, Ints
from data.images.image_source import ImageSource, open_image_source
from data.index.open_catalog import open_catalog

PICTURES = 128
BATCH = 64
CROP_AND_FLIP: dict[str, object] = {"crop_padding": 16, "flip": True}
RESIZED_CROP: dict[str, object] = {"resized_crop": True, "flip": True}
# (what, height, width, JPEG quality, side of the batch, augmentation or None for validation)
CASES: list[tuple[str, int, int, int, int, dict[str, object] | None]] = [
    ("crop + flip", 256, 256, 93, 256, CROP_AND_FLIP),
    ("random-resized-crop + flip", 256, 256, 93, 224, RESIZED_CROP),
    ("random-resized-crop + flip", 375, 500, 85, 224, RESIZED_CROP),
    ("random-resized-crop + flip", 768, 1024, 85, 224, RESIZED_CROP),
    ("validation fit", 375, 500, 85, 224, None),
    ("validation fit", 768, 1024, 85, 224, None),
]


def main() -> None:
    """Parse the command line, print a line per case."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="decode threads, of both")
    parser.add_argument("--rounds", type=int, default=15, help="pairs; a ratio compares the two of one pair")
    arguments = parser.parse_args()
    print(
        f"| threads {arguments.threads}, batches of {BATCH} | KB | decoder alone, µs | source, µs | ratio | µs, full |"
    )
    print("|---|---|---|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="decode-") as folder:
            print(_row(Path(folder), *case, arguments.threads, arguments.rounds), flush=True)


def _row(
    folder: Path, what: str, height: int, width: int, quality: int, size: int, augment: dict[str, object] | None,
    threads: int, rounds: int,
) -> str:  # fmt: skip
    jpegs = [simplejpeg.encode_jpeg(picture(height, width, n), quality, "RGB", "420") for n in range(PICTURES)]
    source = _source(folder, jpegs, size, augment, threads)
    with ThreadPoolExecutor(threads) as pool:
        ours = _filler(source)
        pairs = [(_cpu_us(lambda: _decode_all(pool, threads, jpegs)), _cpu_us(ours)) for _ in range(rounds + 1)][1:]
        with patch("data.images.crops._FAST_EIGHTHS", ()):
            full_us = median(_cpu_us(ours) for _ in range(rounds))
    source.close()
    decoder_us, ours_us = (median(column) for column in zip(*pairs, strict=True))
    ratio, kb = median(a / b for a, b in pairs), sum(map(len, jpegs)) / PICTURES / 1000
    name = f"{what}, {width}×{height} to {size}"
    return f"| {name} | {kb:.0f} | {decoder_us:.0f} | {ours_us:.0f} | {ratio:.2f} | {full_us:.0f} |"


def picture(height: int, width: int, seed: int) -> Bytes:
    """Noise with the spectrum of photographs."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for octave in range(7):
        shape = ((height >> octave) + 2, (width >> octave) + 2)
        for channel in range(3):
            noise = Image.fromarray(random.normal(size=shape).astype(np.float32))
            pixels[:, :, channel] += np.asarray(noise.resize((width, height))) * 2 ** (0.75 * octave)
    clipped: Bytes = np.clip(pixels / pixels.std() * 50 + 128, 0, 255).astype(np.uint8)
    return clipped


def _source(
    folder: Path, jpegs: Sequence[bytes], size: int, augment: dict[str, object] | None, threads: int
) -> ImageSource:
    shard = folder / "pictures.tar"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, jpeg in enumerate(jpegs):
            for part, contents in (("jpg", jpeg), ("cls", b"7")):
                header = tarfile.TarInfo(f"{number:04d}.{part}")
                header.size = len(contents)
                tar.addfile(header, io.BytesIO(contents))
    fields = {
        "run": {"name": "decode", "steps": 1},
        "model": {"kind": "resnet", "classes": 10},
        "data": {"kind": "image", "size": size, "train": {"shards": str(shard)}, "augment": augment or {}},
        "batch": {"global": BATCH, "micro": BATCH},
        "optimizer": {"kind": "sgd"},
        "workers": {"cpus": threads},
    }
    return open_image_source("train", open_catalog(str(shard)), Recipe.model_validate(fields), 1 if augment else None)


def _filler(source: ImageSource) -> Callable[[], None]:
    """Fills one epoch, into the same batch again and again."""
    arrays, rows = source.blank(BATCH), np.arange(BATCH)
    arrays["images_BHWC"][:] = 1  # its memory exists before the clock starts

    def fill() -> None:
        items: Ints
        for items in np.split(np.arange(PICTURES), PICTURES // BATCH):
            source.fill(items, rows, arrays)

    return fill


def _decode_all(pool: ThreadPoolExecutor, threads: int, jpegs: Sequence[bytes]) -> None:
    if threads == 1:
        _decode(iter(jpegs))
        return
    shared = iter(jpegs)
    for task in [pool.submit(_decode, shared) for _ in range(threads)]:
        task.result()


def _decode(jpegs: Iterator[bytes]) -> None:
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, "RGB")


def _cpu_us(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) / PICTURES * 1e6


if __name__ == "__main__":
    main()
