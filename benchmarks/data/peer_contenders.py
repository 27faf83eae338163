"""The peers of `benchmarks.data`, in their own environment: `python -m benchmarks.data.peer_contenders NAME FOLDER`.

Each is set as it is fastest here: undecoded bytes in this process without worker processes, lists of 64 samples.
"""

import random
import sys
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.common.child import Handler, digest, measured, measured_once, serve

BATCH = 64
PARTS = {"jpeg": ("jpg", "cls"), "text": ("txt",)}
CROP_PADDING = 16
Sample = dict[str, Any]


class Peer(ABC):
    """How one library reads FOLDER/jpeg or FOLDER/text in batches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def prepare(self) -> None:
        """Convert the tars to its own format."""

    @abstractmethod
    def epoch(self, kind: str) -> Iterator[list[Sample]]:
        """One shuffled pass."""

    def tars(self, kind: str) -> list[str]:
        """The shards as they were made, in order."""
        return sorted(map(str, (self.folder / kind).glob("*.tar")))


class WebDataset(Peer):
    """Shards shuffled, then a buffer of 1000 samples, its documentation's pipeline."""

    def prepare(self) -> None:
        """Tars are its own format."""

    def epoch(self, kind: str) -> Iterator[list[Sample]]:
        return iter(self._samples(self.tars(kind)).batched(BATCH, collation_fn=None))

    def decode(self, seconds: float) -> dict[str, Any]:
        """To a uint8 batch by Pillow; crop and mirror by Pillow too, which pads for nothing."""
        import numpy as np

        def collate(samples: list[tuple[Any, int]]) -> Any:
            return np.stack([pixels_HWC for pixels_HWC, _ in samples]), np.array([label for _, label in samples])

        def load(sample: tuple[Any, int]) -> tuple[Any, int]:
            return np.asarray(_crop_and_flip(sample[0])), sample[1]

        def epoch() -> Iterator[int]:
            pipeline = self._samples(self.tars("jpeg")).decode("pil").to_tuple("jpg", "cls").map(load)
            for images_BHWC, _ in pipeline.batched(BATCH, collation_fn=collate):
                yield len(images_BHWC)

        return measured(epoch, seconds)

    def remote(self, urls: list[str], workers: int) -> dict[str, Any]:
        """Every text at these URLs once, each shard read by `curl`; the count is of bytes."""
        import torch

        samples = self._samples(urls)
        if workers:
            samples = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers)
        return measured_once(lambda: sum(len(sample["txt"]) for sample in samples))

    def _samples(self, urls: list[str]) -> Any:
        import webdataset

        return webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000)


def _crop_and_flip(image: Any) -> Any:
    from PIL import Image

    left, top = (random.randint(-CROP_PADDING, CROP_PADDING) for _ in range(2))
    image = image.crop((left, top, left + image.width, top + image.height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


class LitData(Peer):
    """Chunks of 64 MB, its default, which it maps into memory: an image or text is a view that nobody has read yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data_sets: dict[str, Any] = {}

    def prepare(self) -> None:
        from litdata.streaming.writer import BinaryWriter

        for kind in PARTS:
            self._folder(kind).mkdir(parents=True)
            writer = BinaryWriter(str(self._folder(kind)), chunk_bytes="64MB")
            for number, sample in enumerate(_samples(self.tars(kind))):
                writer[number] = sample
            writer.done()
            writer.merge()

    def epoch(self, kind: str) -> Iterator[list[Sample]]:
        import litdata

        if kind not in self._data_sets:
            self._data_sets[kind] = litdata.StreamingDataset(str(self._folder(kind)), shuffle=True)
        return _lists(self._data_sets[kind])

    def _folder(self, kind: str) -> Path:
        return self.folder / "litdata" / kind


class Streaming(Peer):
    """MDS shards of 64 MB, its default; the simplest of its shuffles is the fastest here."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data_sets: dict[str, Any] = {}

    def prepare(self) -> None:
        from streaming import MDSWriter

        for kind in PARTS:
            columns = {part: "int" if part == "cls" else "bytes" for part in PARTS[kind]}
            with MDSWriter(out=str(self._folder(kind)), columns=columns) as writer:
                for sample in _samples(self.tars(kind)):
                    writer.write(sample)

    def epoch(self, kind: str) -> Iterator[list[Sample]]:
        from streaming import StreamingDataset

        if kind not in self._data_sets:
            self._data_sets[kind] = StreamingDataset(
                local=str(self._folder(kind)), shuffle=True, shuffle_algo="naive", batch_size=BATCH
            )
        return _lists(self._data_sets[kind])

    def _folder(self, kind: str) -> Path:
        return self.folder / "streaming" / kind


def _samples(tars: Iterable[str]) -> Iterator[Sample]:
    """The parts of each sample, the label as a number."""
    for path in tars:
        with tarfile.open(path) as tar:
            for key, members in groupby(tar, lambda member: member.name.partition(".")[0]):
                sample = {m.name.removeprefix(f"{key}."): _contents(tar, m) for m in members}
                yield {part: int(contents) if part == "cls" else contents for part, contents in sample.items()}


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _lists(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _read(peer: Peer, kind: str, seconds: float, copied: bool) -> dict[str, Any]:
    """`copied`: its views are made bytes of their own, which reads them."""
    part = PARTS[kind][0]

    def as_delivered() -> Iterator[int]:
        return map(len, peer.epoch(kind))

    def as_bytes() -> Iterator[int]:
        for samples in peer.epoch(kind):
            yield len([bytes(sample[part]) for sample in samples])

    return measured(as_bytes if copied else as_delivered, seconds)


def _check(peer: Peer, kind: str) -> dict[str, int]:
    part = PARTS[kind][0]
    return digest((len(s[part]), zlib.crc32(s[part])) for samples in peer.epoch(kind) for s in samples)


def main() -> None:
    """Serve one peer."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    peers: dict[str, type[Peer]] = {"webdataset": WebDataset, "litdata": LitData, "mosaicml-streaming": Streaming}
    peer = peers[name](folder)
    handlers: dict[str, Handler] = {
        "version": lambda: {"version": version(name)},
        "prepare": lambda: {"done": peer.prepare()},
        "check": lambda kind: _check(peer, kind),
        "read": lambda **options: _read(peer, **options),
    }
    if isinstance(peer, WebDataset):
        handlers |= {"decode": peer.decode, "remote": peer.remote}
    serve(handlers)


if __name__ == "__main__":
    main()
