"""Views of pictures and what becomes of their pixels."""

from collections import Counter

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs.sections.data_section import Augment, RandAugment
from data.arrays import Bytes
from data.draws import raw
from data.images import resize
from data.images.codecs import EIGHTHS, PixelBuffer, open_picture
from data.images.crops import DRAWS, Crop, centre_crop, random_crop
from data.images.rand_augment import DRAWS_PER_OPERATION, OPERATIONS, rand_augment, random_operations
from data.images.sample_draws import uniforms

sides = st.integers(1, 700)
draws = st.lists(st.floats(0, 1, exclude_max=True), min_size=DRAWS, max_size=DRAWS)
ways = st.sampled_from([Augment(flip=True), Augment(resized_crop=True), Augment(crop_padding=5, flip=True)])


def _natural(height: int, width: int, seed: int = 0) -> Bytes:
    """Noise with the spectrum of photographs."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for octave in range(6):
        noise = random.normal(size=((height >> octave) + 2, (width >> octave) + 2, 3)).astype(np.float32)
        channels = [Image.fromarray(noise[:, :, c]).resize((width, height)) for c in range(3)]
        pixels += np.stack([np.asarray(channel) for channel in channels], 2) * 2**octave
    clipped: Bytes = np.clip(pixels / pixels.std() * 50 + 128, 0, 255).astype(np.uint8)
    return clipped


@given(sides, sides, st.integers(1, 300), ways, draws)
def test_a_view_lies_within_the_picture(height: int, width: int, size: int, how: Augment, u: list[float]) -> None:
    for crop in (centre_crop(height, width, size), random_crop(height, width, size, how, u)):
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        eighths = crop.eighths(height, width)
        assert eighths == EIGHTHS or min(right - left, bottom - top) * eighths >= size * EIGHTHS
        assert max(abs(crop.shift_x), abs(crop.shift_y)) <= how.crop_padding


def test_the_centre_is_all_but_an_eighth_of_the_shorter_side() -> None:
    assert centre_crop(224, 224, 224).box == (0, 0, 224, 224)
    assert centre_crop(256, 256, 224).box == (16, 16, 240, 240)
    assert centre_crop(512, 1024, 224).box == (288, 32, 736, 480)
    assert centre_crop(512, 1024, 224).eighths(512, 1024) == 4


@given(st.integers(0, 2**32), st.sampled_from([1, 3]), st.booleans(), st.integers(1, 20))
def test_a_part_is_copied_as_numpy_would_cut_and_mirror_it(seed: int, channels: int, mirrored: bool, size: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(size, 2 * size + 1, 2).tolist()
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    left, top = (int(random.integers(0, side - size + 1)) for side in (width, height))
    right, down = random.integers(-size, size + 1, 2).tolist()
    row = np.zeros((3, size, size, channels), np.uint8)
    crop = Crop(size, (left, top, left + size, top + size), right, down, mirrored)
    assert not crop.resizes
    resize.write_crop(np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels, EIGHTHS, crop, row[1])
    padded = np.pad(pixels[top : top + size, left : left + size], ((size, size), (size, size), (0, 0)))
    naive = padded[size - down : 2 * size - down, size - right : 2 * size - right]
    np.testing.assert_array_equal(row[1], naive[:, ::-1] if mirrored else naive)
    assert not row[[0, 2]].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_resized_as_pillow_resizes_a_box_of_the_whole_picture(channels: int) -> None:
    pixels = _natural(150, 200)[:, :, :channels].copy()
    whole = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    for box in ((0.0, 0.0, 200.0, 150.0), (31.4, 7.9, 121.5, 149.7), (180.0, 130.0, 200.0, 150.0)):
        found = resize.resize(pixels, EIGHTHS, Crop(48, box))
        pillow = np.asarray(whole.resize((48, 48), Image.Resampling.BILINEAR, box=box)).reshape(found.shape)
        assert np.abs(found.astype(int) - pillow).max() <= 1


@pytest.mark.parametrize("subsampling", ["420", "444", "Gray"])
def test_a_scaled_decode_is_close_to_the_full_one(subsampling: str) -> None:
    buffer, used = PixelBuffer(), Counter[int]()
    channels, colours = (1, "GRAY") if subsampling == "Gray" else (3, "RGB")
    for seed in range(12):
        height, width = (373, 501) if seed % 2 else (640, 427)
        original = _natural(height, width, seed)[:, :, :channels].copy()
        picture = open_picture(simplejpeg.encode_jpeg(original, 90, colours, subsampling), "jpg")
        u = uniforms(DRAWS, ("test",), np.array([0]), np.array([seed]))[0].tolist()
        for size in (32, 64, 100):
            crop = random_crop(height, width, size, Augment(resized_crop=True), u)
            rows = np.zeros((2, size, size, channels), np.uint8)
            for eighths, row in ((crop.eighths(height, width), rows[0]), (EIGHTHS, rows[1])):
                pixels, has = picture.pixels(channels, eighths, reverse=False, buffer=buffer)
                assert has == eighths and pixels.shape[0] == -(-height * eighths // EIGHTHS)
                resize.write_crop(pixels, has, crop, row)
            used[crop.eighths(height, width)] += 1
            difference = rows[0].astype(int) - rows[1]
            assert np.abs(difference).mean() < 2.5 and abs(difference.mean()) < 0.5
    assert set(used) == {1, 2, 4, 8}


def test_the_draws_of_a_sample_depend_on_nothing_but_the_key_the_epoch_and_the_sample() -> None:
    random = np.random.default_rng(0)
    epochs, samples = random.integers(0, 3, 500), random.integers(0, 10**12, 500)
    together = uniforms(7, ("a", 1), epochs, samples)
    for i in range(0, 500, 50):
        alone = uniforms(9, ("a", 1), epochs[i : i + 1], samples[i : i + 1])
        np.testing.assert_array_equal(alone[0, :7], together[i])
    assert len(np.unique(uniforms(3, ("a", 1), np.repeat([0, 1], 1000), np.tile(np.arange(1000), 2)))) == 6000
    assert not np.isin(uniforms(7, ("a", 2), epochs, samples), together).any()


def _splitmix64(state: int) -> int:
    """Of Steele et al. 2014, in integers: the number that follows from the state."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_draws_are_those_of_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    assert _splitmix64(1234567 + golden) == 6457827717110365317  # as published for this seed
    state = _splitmix64(int(raw(1, ("a", 1, 5))[0]) + 6 * golden)
    expected = [(_splitmix64(state + i * golden) >> 11) / 2**53 for i in (1, 2, 3)]
    assert uniforms(3, ("a", 1), np.array([5]), np.array([6])).tolist() == [expected]


def test_draws_of_neighbouring_samples_are_uniform_and_unrelated() -> None:
    table = uniforms(8, ("a",), np.zeros(20_000, np.int64), np.arange(20_000))
    histogram = np.histogram(table, 64, (0, 1))[0]
    assert ((histogram - 2500) ** 2 / 2500).sum() < 110  # chi square, 63 degrees of freedom
    related = np.corrcoef(np.concatenate([table[:-1].T, table[1:].T]))
    assert np.abs(related - np.eye(16)).max() < 0.03


IMAGE = _natural(40, 56)
DIRECTED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def _apply(name: str, strength: float, pixels: Bytes = IMAGE) -> Bytes:
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    return np.asarray(OPERATIONS[name](image, strength)).reshape(pixels.shape)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_an_operation_of_magnitude_zero_changes_nothing(name: str) -> None:
    for pixels in (IMAGE, IMAGE[:, :, :1]):
        np.testing.assert_array_equal(_apply(name, 0.0, pixels), pixels)
        np.testing.assert_array_equal(_apply(name, -0.0, pixels), pixels)


def test_operations_do_what_they_say() -> None:
    grey = IMAGE.astype(int)
    np.testing.assert_array_equal(_apply("solarize", 1), 255 - IMAGE)
    np.testing.assert_array_equal(_apply("solarize", 0.5), np.where(IMAGE >= 128, 255 - IMAGE, IMAGE))
    np.testing.assert_array_equal(_apply("posterize", 1), IMAGE & 0xF0)
    assert np.abs(_apply("brightness", -1) - grey * 0.1).max() <= 1
    assert np.abs(_apply("brightness", 1) - np.minimum(grey * 1.9, 255)).max() <= 1
    assert np.ptp(_apply("contrast", -1).astype(int)) < np.ptp(grey) / 4
    assert np.ptp(_apply("color", -1).astype(int), axis=2).max() < np.ptp(grey, axis=2).max() / 4
    assert np.ptp(_apply("color", 1).astype(int), axis=2).mean() > np.ptp(grey, axis=2).mean() * 1.3
    assert np.abs(np.diff(_apply("sharpness", -1).astype(int), axis=1)).mean() < np.abs(np.diff(grey, axis=1)).mean()
    shift = 56 * 150 / 331
    whole = int(np.ceil(shift))
    assert not _apply("translate_x", 1)[:, 56 - int(shift) :].any() and _apply("translate_x", 1)[:, : 56 - whole].any()
    assert not _apply("translate_x", -1)[:, : int(shift)].any()
    assert not _apply("translate_y", 1)[40 - int(40 * 150 / 331) :].any()
    sheared, plain = _apply("shear_x", 1), Image.fromarray(IMAGE)
    matrix = (1, 0.3, 0, 0, 1, 0)
    np.testing.assert_array_equal(sheared, plain.transform((56, 40), Image.Transform.AFFINE, matrix, 2))
    assert sheared[0].any() and not sheared[-1, -11:].any()
    assert not _apply("shear_y", -1)[0, 4:].any() and _apply("shear_y", -1)[:, 0].any()
    np.testing.assert_array_equal(_apply("rotate", -1), plain.rotate(-30, Image.Resampling.BILINEAR))
    narrow = IMAGE // 4 + 100
    for name in ("autocontrast", "equalize"):
        assert _apply(name, 0, narrow).min() == 0 and _apply(name, 0, narrow).max() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_is_drawn_both_ways_and_keeps_the_shape(channels: int) -> None:
    how = RandAugment(operations=3, magnitude=17)
    count = DRAWS_PER_OPERATION * how.operations
    table = uniforms(count, ("r",), np.zeros(400, np.int64), np.arange(400)).tolist()
    seen = Counter(operation for u in table for operation in random_operations(how, u))
    assert set(seen) == {(name, sign) for name in OPERATIONS for sign in (1, -1)}
    assert max(seen.values()) < 2.2 * 1200 / len(seen)
    pixels = IMAGE[:, :, :channels]
    for u in table:
        found = rand_augment(pixels, how, u)
        assert found.shape == pixels.shape and found.dtype == np.uint8
        by_hand = pixels
        for name, sign in random_operations(how, u):
            by_hand = _apply(name, sign * 17 / 30, by_hand)
        np.testing.assert_array_equal(found, by_hand)


@pytest.mark.parametrize("name", DIRECTED)
def test_a_directed_operation_differs_by_sign(name: str) -> None:
    assert (_apply(name, 0.5) != _apply(name, -0.5)).any()
