"""The recipe's `data` section: which shards, in what order, and how they are read."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.sections.section import Dimension, NonNegative, Positive, Section

__all__ = ["Augment", "Data", "ImageData", "RandAugment", "RemoteReads", "SourceSettings", "TextData", "TokensData"]


class SourceSettings(Section):
    """One of several sources that training draws from by weight; which one a row comes from follows from position."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names it in figures and messages")
    shards: str | list[str] = Field(description="as data.train.shards")
    weight: float = Field(gt=0.0, description="its share of the rows or images, relative to the other sources")
    when_exhausted: Literal["repeat", "stop"] = Field("repeat", description="stop: used once, the others go on")


class TrainShards(Section):
    """Shards to train on: of one source, or of several by weight."""

    shards: str | list[str | SourceSettings] = Field(
        description="tar shards: a path, URL, brace range a-{000..009}.tar, glob, a list of these, or weighted sources"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if isinstance(self.shards, str):
            return self
        names = [entry.name for entry in self.shards if isinstance(entry, SourceSettings)]
        if names and len(names) < len(self.shards):
            raise ValueError("data.train.shards mixes names and weighted sources: give each a name and a weight")
        if len(set(names)) < len(names):
            raise ValueError(f"data.train.shards has a source named twice: {', '.join(names)}")
        return self

    @property
    def sources(self) -> list[SourceSettings]:
        """What training draws from; a plain list of shards is one source."""
        if isinstance(self.shards, str):
            return [SourceSettings(name="train", shards=self.shards, weight=1.0)]
        weighted = [entry for entry in self.shards if isinstance(entry, SourceSettings)]
        plain = [entry for entry in self.shards if isinstance(entry, str)]
        return weighted or [SourceSettings(name="train", shards=plain, weight=1.0)]


class Shards(Section):
    """Shards to validate on, read once in their order."""

    shards: str | list[str] = Field(
        description="tar shards: a path, URL, brace range a-{000..009}.tar, glob, or a list of these"
    )


class RemoteReads(Section):
    """How shards at s3://, gs://, az:// and http(s):// are read. None of these changes what is read."""

    cache_dir: str | None = Field(None, description="shared by the ranks of a node; default: stoker/shards in ~/.cache")
    cache_bytes: Positive = Field(64 << 30, description="the least recently used pieces beyond this are dropped")
    connections: Positive = Field(8, description="ranges read at once by one worker")
    timeout_s: float = Field(20.0, gt=0.0, description="without a byte for this long, a range is asked for again")
    tries: Positive = Field(8, description="for one range, with growing pauses, before the run stops")


class _Data(Section):
    train: TrainShards
    val: Shards | None = None
    shuffle_window_bytes: Positive = Field(
        256 << 20,
        description="samples are permuted within windows of this size; larger mixes better, reads wider",
    )
    lanes: Positive = Field(
        1,
        description="parts of the data that each feed an equal share of every batch, so that a worker reads few "
        "shards; divides batch.global; default: its largest divisor up to 64",
    )
    on_error: Literal["stop", "skip"] = Field("stop", description="at a sample or block that cannot be used")
    max_skipped: NonNegative = Field(1000, description="with on_error skip: more than this many end the run")
    verify_reads: bool = Field(
        True, description="check each block of local shards when it is first read; of remote ones always"
    )
    remote: RemoteReads = RemoteReads()


class _Documents(_Data):
    packing: Literal["concat", "best_fit"] = Field(
        "concat", description="rows: documents end to end and split; or whole documents, fitted, split only if longer"
    )
    document_mask: bool = Field(False, description="no attention, and no target, across documents of a row")


class TextData(_Documents):
    """Text (a sample is a document), tokenized as it is read."""

    kind: Literal["text"]
    tokenizer: str = Field("bytes", description="`bytes`, or the path of a Hugging Face tokenizer.json")
    part: str = Field("txt", description="extension of the text part of a sample")


class TokensData(_Documents):
    """Documents as token ids made before, used as they are."""

    kind: Literal["tokens"]
    vocab: Dimension = Field(description="token ids are 0 … vocab-1")
    part: str = Field("npy", description="extension of the one-dimensional integer array")


class RandAugment(Section):
    """Cubuk et al. 2020, with the operations that Pillow has."""

    operations: Positive = Field(2, description="applied one after the other")
    magnitude: int = Field(9, ge=0, le=30, description="of each, 0 … 30")


class Augment(Section):
    """Each draw is keyed by (seed, epoch, sample): the same on any number of workers."""

    crop_padding: NonNegative = Field(0, description="pad by this many pixels, then crop at random")
    resized_crop: bool = Field(False, description="random area 8–100 %, aspect 3/4–4/3 (Szegedy et al. 2015)")
    flip: bool = Field(False, description="left–right, half of the time")
    rand_augment: RandAugment | None = None

    @model_validator(mode="after")
    def _one_crop(self) -> Self:
        if self.crop_padding and self.resized_crop:
            raise ValueError("data.augment has both crop_padding and resized_crop: choose one")
        return self


class ImageData(_Data):
    """Images with class labels (part cls)."""

    kind: Literal["image"]
    size: Dimension = Field(224, description="pixels, square")
    channels: Literal[1, 3] = 3
    mean: list[float] | None = Field(None, description="per channel, in 0…1; default ImageNet's, 0.5 for one channel")
    std: list[float] | None = Field(None, description="per channel; default ImageNet's, 0.5 for one channel")
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _channel_lists(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"data.{name} has {len(values)} values, but data.channels is {self.channels}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"data.std is {self.std}: every value must be above 0")
        return self


Data = Annotated[TextData | TokensData | ImageData, Field(discriminator="kind")]
