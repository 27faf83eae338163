"""Folders of files -> inputs of packing: texts, and images by class."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.arrays import Ints
from data.images.codecs import IMAGE_PARTS, decode_image
from data.images.image_samples import LABEL_PART
from data.pack.pack_plan import Inputs, Json, LeftOut, LeftOuts, PackJob, Sample, hash_order, unique_keys, val_draws
from data.pack.shard_writer import tar_bytes
from data.pack_inputs.list_files import Listing, read_listed
from data.pack_inputs.text_part import Encoding, refuse_text, text_part


@dataclass(frozen=True)
class TextJob:
    """Files that each are a text."""

    folder: Path
    files: list[tuple[str, str, int]]  # key, name, bytes
    encoding: Encoding | None

    def samples(self) -> Iterator[Sample | LeftOut]:
        """A sample per file. DataError: a file is not as long as when it was listed."""
        for key, name, size in self.files:
            text = read_listed(self.folder, name, size)
            if refused := refuse_text(name, text):
                yield refused
            else:
                part, contents, tokens = text_part(text, self.encoding)
                yield Sample(key, {part: contents}, tokens)


def text_inputs(listing: Listing, options: Json, encoding: Encoding | None) -> Inputs:
    """A sample per file, part txt, or npy with an encoding. Empty files and those that are not UTF-8 are left out."""
    keys = unique_keys(listing.names)

    def job(numbers: Ints) -> PackJob:
        files = [(keys[n], listing.names[n], int(listing.sizes[n])) for n in numbers]
        return TextJob(listing.folder, files, encoding)

    factor = encoding.bytes_per_byte if encoding else 1
    archived = [tar_bytes([size * factor]) for size in listing.sizes.tolist()]
    kind, facts = ("tokens", encoding.facts) if encoding else ("text", {})
    return file_inputs(kind, options, listing, archived, job, facts)


@dataclass(frozen=True)
class ImageJob:
    """Files that each are an image, with a label."""

    folder: Path
    files: list[tuple[str, str, int, int]]  # key, name, bytes, label
    check: bool

    def samples(self) -> Iterator[Sample | LeftOut]:
        """A sample per image, bytes unchanged. DataError: a file is not as long as when it was listed."""
        for key, name, size, label in self.files:
            contents, part = read_listed(self.folder, name, size), image_part(name)
            assert part is not None
            refused = refuse_image(name, contents, part) if self.check else None
            yield refused or Sample(key, {part: contents, LABEL_PART: b"%d" % label})


def image_inputs(listing: Listing, classes: list[str] | None, check: bool) -> Inputs:
    """A sample per image of a folder with a subfolder per class, bytes kept; classes are numbered by name.

    Files that are no images are left out, with `check` those that cannot be decoded too. DataError: there are none, or
    a subfolder is not among the classes given.
    """
    found = [image_part(name) is not None and "/" in name for name in listing.names]
    images = listing.only(found)
    if not images.names:
        raise DataError(f"{listing.folder}: no images in subfolders: expected CLASS/name.{{{','.join(IMAGE_PARTS)}}}")
    others = [name for name, is_image in zip(listing.names, found, strict=True) if not is_image]
    left_out = [LeftOut(name, "not an image" if "/" in name else "not in a class folder") for name in others]
    found_classes = sorted({name.split("/")[0] for name in images.names})
    number = number_classes(found_classes if classes is None else classes)
    for name in found_classes:
        if name not in number:
            raise DataError(f"{listing.folder / name}: not among the {len(number)} classes given: add it to the file")
    keys = unique_keys(images.names)

    def job(numbers: Ints) -> PackJob:
        names = [images.names[n] for n in numbers]
        labels = [number[name.split("/")[0]] for name in names]
        sizes = images.sizes[numbers].tolist()
        return ImageJob(listing.folder, list(zip([keys[n] for n in numbers], names, sizes, labels, strict=True)), check)

    archived = [tar_bytes([size, 1]) for size in images.sizes.tolist()]
    options = {"check": check}
    return file_inputs("images", options, images, archived, job, {"classes": list(number)}, left_out)


def file_inputs(
    kind: str,
    options: Json,
    listing: Listing,
    archived_bytes: list[int],
    job: Callable[[Ints], PackJob],
    facts: Json,
    left_out: Sequence[LeftOut] = (),
) -> Inputs:
    """Inputs that are the files of a listing, packed in the order of their hashes."""
    all_left_out = LeftOuts()
    for found in (*left_out, *listing.left_out):
        all_left_out.add(found)
    return Inputs(
        kind=kind,
        options=options,
        sizes=np.array(archived_bytes, np.int64),
        order=hash_order(listing.names),
        draws=val_draws(listing.names),
        digest=listing.digest(),
        modified=listing.modified(),
        job=job,
        facts=facts,
        left_out=all_left_out,
    )


def number_classes(classes: list[str]) -> dict[str, int]:
    """The label of each class."""
    return {name: label for label, name in enumerate(classes)}


def image_part(path: str) -> str | None:
    """The part that an image file becomes; None when its extension is not an image's."""
    part = path.rsplit(".", 1)[-1].lower()
    return part if part in IMAGE_PARTS else None


def refuse_image(name: str, contents: bytes, part: str) -> LeftOut | None:
    """Why the image is left out when it cannot be decoded."""
    try:
        decode_image(contents, part, 3)
    except ValueError as error:
        return LeftOut(name, f"not an image that can be decoded ({error})")
    return None
