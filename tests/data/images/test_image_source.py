"""Images by item number: the same pixels however they are asked for, and what happens to damaged ones."""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from configs.errors import DataError
from configs.sections.data_section import RemoteReads
from data.arrays import Array, Bytes, Ints, silent
from data.images.codecs import MAX_PIXELS, UnreadableImageError, decode_image
from data.images.image_source import ImageSource, open_image_source
from data.index.open_catalog import open_catalog
from data.shards.shard import CHECKED_BYTES
from data.source import Skipped

MakeRecipe = Callable[..., Any]
MakeShard = Callable[..., Path]
EVERYTHING = {"resized_crop": True, "flip": True, "rand_augment": {"operations": 2}}


def _pixels(seed: int, height: int = 40, width: int = 50) -> Bytes:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def _encoded(pixels: Bytes, format_: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format_, **options)
    return file.getvalue()


@pytest.fixture
def mixed_shard(tmp_path: Path, make_shard: MakeShard) -> Path:
    """30 images of all kinds and several sizes, labelled with their number modulo 10."""
    samples = {}
    for i in range(30):
        pixels = _pixels(i, 24 + 8 * (i % 7), 24 + 16 * (i % 5))
        part, contents = (
            ("jpg", simplejpeg.encode_jpeg(pixels)),
            ("png", _encoded(pixels, "PNG")),
            ("webp", _encoded(pixels, "WEBP")),
            ("jpeg", _encoded(pixels, "JPEG", "CMYK")),
            ("jpg", _encoded(pixels, "PNG", "L")),  # as one of ImageNet's
            ("jpg", _encoded(pixels, "JPEG", "L", progressive=True)),
        )[i % 6]
        samples[f"k{i:02d}"] = {part: contents, "cls": str(i % 10).encode()}
    return make_shard(tmp_path / "mixed.tar", samples)


def _open(shard: Path, recipe: Any, seed: int | None = 1, name: str = "train") -> ImageSource:
    return open_image_source(name, open_catalog(str(shard), RemoteReads(), silent, True), recipe, seed)


def _fill(source: ImageSource, items: Ints) -> tuple[dict[str, Array], list[Skipped]]:
    arrays = source.blank(len(items))
    return arrays, source.fill(items, np.arange(len(items)), arrays)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_item_has_the_same_pixels_for_any_threads_order_and_company(
    channels: int, mixed_shard: Path, image_recipe: MakeRecipe
) -> None:
    def opened(cpus: int) -> ImageSource:
        return _open(mixed_shard, image_recipe([mixed_shard], cpus, channels=channels, size=16, augment=EVERYTHING))

    whole, skipped = _fill(opened(1), np.arange(90))
    assert not skipped and len({image.tobytes() for image in whole["images_BHWC"]}) == 90
    assert sorted(whole["labels_B"][:30]) == sorted([*range(10)] * 3)
    threaded, items = opened(3), np.random.default_rng(0).permutation(90)
    arrays = threaded.blank(92)
    for piece in np.split(items, [1, 2, 40]):
        assert threaded.fill(piece, piece + 1, arrays) == []
    for name in whole:
        np.testing.assert_array_equal(arrays[name][1:-1], whole[name])
    assert not arrays["images_BHWC"][[0, -1]].any() and arrays["labels_B"][[0, -1]].tolist() == [-100, -100]


def test_augmentation_differs_by_epoch_seed_and_source(mixed_shard: Path, image_recipe: MakeRecipe) -> None:
    recipe = image_recipe([mixed_shard], size=16, channels=3, augment={"resized_crop": True})

    def by_key(source: ImageSource, first: int = 0) -> dict[str, bytes]:
        items = np.arange(first, first + 30)
        return dict(zip(source.keys(items), [i.tobytes() for i in _fill(source, items)[0]["images_BHWC"]], strict=True))

    train = _open(mixed_shard, recipe)
    sets = [by_key(train), by_key(train, 30), by_key(_open(mixed_shard, recipe, 2))]
    sets.append(by_key(_open(mixed_shard, recipe, name="other")))
    for key in sets[0]:
        assert len({images[key] for images in sets}) == 4
    assert by_key(_open(mixed_shard, recipe)) == sets[0]


def test_crops_and_flips_in_the_batch_are_those_of_the_decoded_image(
    tmp_path: Path, make_shard: MakeShard, image_recipe: MakeRecipe
) -> None:
    jpegs = {f"k{i:03d}": simplejpeg.encode_jpeg(_pixels(i, 24, 24)) for i in range(40)}
    shard = make_shard(tmp_path / "a.tar", {k: {"jpg": jpeg, "cls": b"3"} for k, jpeg in jpegs.items()})
    recipe = image_recipe([shard], size=24, channels=3, augment={"crop_padding": 2, "flip": True})
    source = _open(shard, recipe)
    images = _fill(source, np.arange(200))[0]["images_BHWC"]
    drawn = set()
    for key, image in zip(source.keys(np.arange(200)), images, strict=True):
        padded = np.pad(decode_image(jpegs[key], "jpg", 3), ((2, 2), (2, 2), (0, 0)))
        crops = [(y, x, flip) for y in range(5) for x in range(5) for flip in (1, -1)]
        found = [(y, x, f) for y, x, f in crops if (padded[y : y + 24, x : x + 24][:, ::f] == image).all()]
        assert len(found) == 1
        drawn.add(found[0])
    assert len(drawn) > 45  # of 50
    plain = _open(shard, recipe, None)
    for key, image in zip(jpegs, _fill(plain, np.arange(40))[0]["images_BHWC"], strict=True):
        np.testing.assert_array_equal(image, decode_image(jpegs[key], "jpg", 3))


def test_jpegs_decode_as_pillow_decodes_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels)
    with Image.open(io.BytesIO(jpeg)) as image:
        np.testing.assert_array_equal(decode_image(jpeg, "jpg", 3), np.asarray(image))
    inks = _encoded(_pixels(0), "JPEG", "CMYK", quality=95)
    with Image.open(io.BytesIO(inks)) as image:
        for channels, mode in ((1, "L"), (3, "RGB")):
            pillow = np.asarray(image.convert(mode)).reshape(40, 50, channels).astype(int)
            assert np.abs(decode_image(inks, "jpeg", channels) - pillow).max() <= 2


JPEGS = {
    "baseline": _encoded(_pixels(1), "JPEG"),
    "progressive": _encoded(_pixels(1), "JPEG", progressive=True),
    "grey": _encoded(_pixels(1), "JPEG", "L"),
    "inks": _encoded(_pixels(1), "JPEG", "CMYK"),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_anywhere_is_refused(kind: str) -> None:
    jpeg = JPEGS[kind]
    # Closed, Pillow takes them for whole; a progressive one closed between scans is whole, only less fine.
    closings = [b""] if kind == "progressive" else [b"", b"\xff\xd9"]
    for size in range(0, len(jpeg) - 2, 7):
        for closing in closings:
            with pytest.raises(UnreadableImageError):
                decode_image(jpeg[:size] + closing, "jpg", 3)
    assert decode_image(jpeg + b"trailing", "jpg", 3).shape == (40, 50, 3)


@pytest.mark.parametrize("part", ["jpg", "png", "webp"])
def test_flipped_bits_give_pixels_or_a_refusal(part: str) -> None:
    format_ = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[part]
    contents, random = _encoded(_pixels(2), format_), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(contents)
        damaged[random.integers(len(damaged))] ^= 1 << int(random.integers(8))
        try:
            assert decode_image(bytes(damaged), part, 3).shape[2] == 3
        except UnreadableImageError:
            refused += 1
    assert refused > {"jpg": 40, "png": 350, "webp": 40}[part]


def test_giant_and_deep_images_are_refused() -> None:
    header = bytearray(_encoded(_pixels(0), "JPEG"))
    at = header.index(b"\xff\xc0") + 5
    header[at : at + 4] = b"\xf0\x00\xf0\x00"
    with pytest.raises(UnreadableImageError, match=rf"61440×61440 pixels, more than {MAX_PIXELS}"):
        decode_image(bytes(header), "jpg", 3)
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    with pytest.raises(UnreadableImageError, match="more than 8 bits"):
        decode_image(deep.getvalue(), "png", 1)


BAD = {
    "b-cut": ({"jpg": JPEGS["baseline"][:-200], "cls": b"1"}, "part jpg .*Premature end of JPEG file"),
    "c-text": ({"jpg": b"not an image", "cls": b"1"}, r"part jpg \(12 bytes\) is not an image .*\(unknown format\)"),
    "d-empty": ({"png": b"", "cls": b"1"}, r"part png \(0 bytes\) is not an image that can be read"),
    "f-word": ({"jpg": JPEGS["grey"], "cls": b"cat"}, "part cls is b'cat', not an integer: write .* 0 … 9"),
    "g-large": ({"jpg": JPEGS["grey"], "cls": b"10\n"}, r"part cls is 10, outside 0 … 9: .*model\.classes \(10\)"),
}


@pytest.fixture
def bad_shard(tmp_path: Path, make_shard: MakeShard) -> Path:
    good = {key: {"jpg": JPEGS["baseline"], "cls": b"7"} for key in ("a", "e", "h")}
    return make_shard(
        tmp_path / "bad.tar", dict(sorted({**good, **{k: parts for k, (parts, _) in BAD.items()}}.items()))
    )


@pytest.mark.parametrize("cpus", [1, 3])
def test_the_first_bad_sample_asked_for_stops(cpus: int, bad_shard: Path, image_recipe: MakeRecipe) -> None:
    source = _open(bad_shard, image_recipe([bad_shard], cpus, channels=3), None)
    for items in ([0, 1, 2, 3], [2, 4, 1], [7, 3], [0, 5, 6], [6, 5]):
        first = next(i for i in items if i not in (0, 4, 7))
        key = source.keys(np.array([first]))[0]
        with pytest.raises(DataError, match=rf"bad\.tar: sample {key}: {BAD[key][1]}"):
            _fill(source, np.array(items))


@pytest.mark.parametrize("seed", [None, 1])
def test_bad_samples_are_skipped_alike_by_any_number_of_threads(
    seed: int | None, bad_shard: Path, image_recipe: MakeRecipe
) -> None:
    found = []
    for cpus in (1, 3):
        recipe = image_recipe([bad_shard], cpus, channels=3, on_error="skip", augment=EVERYTHING)
        found.append(_fill(_open(bad_shard, recipe, seed), np.arange(8)))
        keys = _open(bad_shard, recipe, seed).keys(np.arange(8))
    (arrays, skipped), (again, skipped_again) = found
    assert skipped == skipped_again
    assert [s.key for s in skipped] == [key for key in keys if key in BAD] and {s.shard for s in skipped} == {
        str(bad_shard)
    }
    assert all(s.cause.startswith("part ") for s in skipped)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], again[name])
    for key, image, label in zip(keys, arrays["images_BHWC"], arrays["labels_B"], strict=True):
        assert (label, image.any()) == ((-100, False) if key in BAD else (7, True))


def test_a_damaged_block_costs_the_samples_in_it_and_no_others(
    tmp_path: Path, make_shard: MakeShard, image_recipe: MakeRecipe
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    png = _encoded(noise, "PNG")
    shard = make_shard(tmp_path / "a.tar", {f"k{i:02d}": {"png": png, "cls": b"1"} for i in range(12)})
    recipe = image_recipe([shard], channels=3, on_error="skip")
    source = _open(shard, recipe, None)
    status = shard.stat()
    with shard.open("r+b") as file:
        file.seek(3 * CHECKED_BYTES + 100)
        file.write(b"\0\0\0\0\0\0\0\0")
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    arrays, skipped = _fill(source, np.arange(12))
    part = source.catalog.part("png")
    ends = [(part.offsets[i], part.offsets[i] + part.sizes[i] + 1024) for i in range(12)]
    hit = [f"k{i:02d}" for i, (a, b) in enumerate(ends) if a < 4 * CHECKED_BYTES and b > 3 * CHECKED_BYTES]
    assert 2 <= len(hit) < 6 and [s.key for s in skipped] == hit
    assert (arrays["labels_B"] == -100).sum() == len(hit)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_mistake_in_the_program_is_not_taken_for_a_bad_sample(
    cpus: int, bad_shard: Path, image_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _open(bad_shard, image_recipe([bad_shard], cpus, on_error="skip"), None)
    monkeypatch.setattr("data.images.image_source.centre_crop", lambda *_: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        _fill(source, np.arange(8))


def test_a_sample_without_image_or_label_is_named_at_once(
    tmp_path: Path, make_shard: MakeShard, image_recipe: MakeRecipe
) -> None:
    whole = {"png": _encoded(_pixels(0), "PNG"), "cls": b"1"}
    for part, expected in (("png", r"an image \(jpg, jpeg, png, webp\)"), ("cls", "cls")):
        bare = {name: contents for name, contents in whole.items() if name != part}
        shard = make_shard(tmp_path / f"{part}.tar", {"ok": whole, "bare": bare})
        with pytest.raises(DataError, match=rf"sample bare has parts \w+, but the recipe needs {expected}"):
            _open(shard, image_recipe([shard]))


def test_closing_stops_the_threads(mixed_shard: Path, image_recipe: MakeRecipe) -> None:
    before = set(threading.enumerate())
    source = _open(mixed_shard, image_recipe([mixed_shard], 3))
    _fill(source, np.arange(30))
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert started and all(thread.name.startswith("decode") and thread.is_alive() for thread in started)
    source.close()
    assert not any(thread.is_alive() for thread in started)
