"""The recipe's schema: every key, its type, default, bounds and meaning. Only valid recipes exist."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(ge=0.0)]
InitFrom = Annotated[
    str | None,
    Field(
        min_length=1,
        description="initial weights: a Hugging Face folder (config.json, safetensors) or one .safetensors file; "
        "read at the start of the run only",
    ),
]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values are not coerced between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder under `dir`")
    dir: str = Field("runs", min_length=1, description="where run folders are made")
    seed: NonNegative = Field(1337, description="keys every random draw")
    steps: Positive = Field(description="optimizer steps (global batches) of the whole run")


class GptModel(Section):
    """Decoder-only Transformer, pre-norm (trainer/models/gpt.py)."""

    kind: Literal["gpt"]
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive | None = Field(None, description="grouped-query attention; default: `heads`")
    width: Positive = Field(128, description="model (embedding) dimension")
    mlp_width: Positive | None = Field(None, description="default: 4·width (gelu), or 8/3·width up to a multiple of 64")
    context: Positive = Field(64, description="tokens per row")
    vocab: Positive | None = Field(None, description="default: the tokenizer's size")
    positions: Literal["rope", "learned"] = "rope"
    rope_base: float = Field(10000.0, gt=1.0)
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = Field(False, description="biases in linear layers (and LayerNorm)")
    tie_embeddings: bool = True
    dropout: Fraction = 0.0
    init_std: float = Field(0.02, gt=0.0)
    checkpoint_activations: bool = Field(False, description="recompute blocks in backward: less memory, more work")
    init_from: InitFrom = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"model.heads is {self.heads}, which does not divide model.width {self.width}: "
                f"choose heads from {_divisors(self.width)}"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"model.kv_heads is {self.kv_heads}, which does not divide model.heads {self.heads}: "
                f"choose kv_heads from {_divisors(self.heads)}"
            )
        if self.positions == "rope" and (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width/model.heads is {self.width // self.heads}, but rope rotates pairs: "
                "choose an even head dimension or positions: learned"
            )
        return self


class ResnetModel(Section):
    """ResNet v1.5 (trainer/models/resnet.py)."""

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50] = 18
    classes: Positive = Field(description="number of classes; labels are 0 … classes-1")
    width: Positive = Field(64, description="channels of the first stage; 64 in the paper")
    stem: Literal["imagenet", "small"] = Field("imagenet", description="small: 3×3 stride 1, no pooling (CIFAR-like)")
    dropout: Fraction = Field(0.0, description="before the classifier")
    zero_init_residual: bool = Field(True, description="last norm of each block starts at 0 (Goyal et al. 2017)")
    label_smoothing: Fraction = 0.0
    init_from: InitFrom = None


Model = Annotated[GptModel | ResnetModel, Field(discriminator="kind")]


class Source(Section):
    """One of several sources that training draws from by weight; which one a row comes from follows from position."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names it in figures and messages")
    shards: str | list[str] = Field(description="as data.train.shards")
    weight: float = Field(gt=0.0, description="its share of the rows or images, relative to the other sources")
    when_exhausted: Literal["repeat", "stop"] = Field("repeat", description="stop: used once, the others go on")


class TrainShards(Section):
    shards: str | list[str | Source] = Field(
        description="tar shards: a path, URL, brace range a-{000..009}.tar, glob, a list of these, or weighted sources"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if isinstance(self.shards, str):
            return self
        names = [entry.name for entry in self.shards if isinstance(entry, Source)]
        if names and len(names) < len(self.shards):
            raise ValueError("data.train.shards mixes names and weighted sources: give each a name and a weight")
        if len(set(names)) < len(names):
            raise ValueError(f"data.train.shards has a source named twice: {', '.join(names)}")
        return self

    @property
    def sources(self) -> list[Source]:
        """What training draws from; a plain list of shards is one source."""
        if isinstance(self.shards, str):
            return [Source(name="train", shards=self.shards, weight=1.0)]
        weighted = [entry for entry in self.shards if isinstance(entry, Source)]
        plain = [entry for entry in self.shards if isinstance(entry, str)]
        return weighted or [Source(name="train", shards=plain, weight=1.0)]


class Shards(Section):
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
        description="parts of the data that each feed an equal share of every batch, so that a worker reads few shards; "
        "divides batch.global; default: the largest divisor of it up to 64",
    )
    on_error: Literal["stop", "skip"] = Field("stop", description="at a sample or block that cannot be used")
    max_skipped: NonNegative = Field(1000, description="with on_error skip: more than this many end the run")
    verify_reads: bool = Field(True, description="check each block against its checksum when it is first read")
    remote: RemoteReads = RemoteReads()


class _Documents(_Data):
    packing: Literal["concat", "best_fit"] = Field(
        "concat", description="rows: documents end to end and split; or whole documents, fitted, split only if longer"
    )
    document_mask: bool = Field(False, description="no attention, and no target, across documents of a row")


class TextData(_Documents):
    kind: Literal["text"]
    tokenizer: str = Field("bytes", description="`bytes`, or the path of a Hugging Face tokenizer.json")
    part: str = Field("txt", description="extension of the text part of a sample")


class TokensData(_Documents):
    kind: Literal["tokens"]
    vocab: Positive = Field(description="token ids are 0 … vocab-1")
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
    kind: Literal["image"]
    size: Positive = Field(224, description="pixels, square")
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


class Batch(Section):
    global_: Positive = Field(alias="global", description="samples (rows or images) per optimizer step")
    micro: Positive = Field(description="samples per forward and backward on one worker")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.micro > self.global_:
            raise ValueError(f"batch.micro is {self.micro}, larger than batch.global {self.global_}: lower batch.micro")
        if self.global_ % self.micro:
            raise ValueError(
                f"batch.global is {self.global_}, not a multiple of batch.micro {self.micro}: "
                f"choose batch.micro from {_divisors(self.global_)}"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches per global batch, the same for any number of workers."""
        return self.global_ // self.micro

    def accumulation(self, workers: int) -> int:
        """Forward/backward rounds per step; in the last round some workers may run an empty micro-batch."""
        return -(-self.micro_batches // workers)


class AdamW(Section):
    kind: Literal["adamw"]
    lr: Rate = 3.0e-4
    betas: list[Fraction] = Field([0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: Rate = 0.1
    decay_embeddings: bool = Field(False, description="norms and biases are never decayed")
    grad_clip: Rate = Field(1.0, description="global L2 norm; 0: off")


class Sgd(Section):
    kind: Literal["sgd"]
    lr: Rate = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Rate = 5e-5
    decay_embeddings: bool = Field(False, description="norms and biases are never decayed")
    grad_clip: Rate = Field(0.0, description="global L2 norm; 0: off")

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


Optimizer = Annotated[AdamW | Sgd, Field(discriminator="kind")]


class Schedule(Section):
    """Learning rate as a function of the step alone (trainer/schedule.py)."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegative = 0
    min_lr: Rate = Field(0.0, description="reached at the last step (cosine, linear)")


class LossScale(Section):
    """Dynamic loss scaling of fp16 (Micikevicius et al. 2018)."""

    initial_power: int = Field(16, ge=0, le=32, description="starts at 2**initial_power")
    window_steps: Positive = Field(1000, description="doubles after this many steps without overflow")
    hysteresis: Positive = Field(2, description="overflows before it halves")
    min_scale: float = Field(1.0, gt=0.0)


class Ema(Section):
    """Exponential moving average of the weights (Polyak and Juditsky 1992), for validation, samples and export."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.999, description="the n-th update uses min(decay, (1 + n)/(10 + n)): early on, the average is short"
    )


class Zero(Section):
    stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_parameters: Literal["none", "cpu"] = "none"

    @model_validator(mode="after")
    def _offload_needs_stage(self) -> Self:
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError("zero.offload_optimizer needs zero.stage 1, 2 or 3")
        if self.offload_parameters != "none" and self.stage != 3:
            raise ValueError(f"zero.offload_parameters needs zero.stage 3, found {self.stage}")
        return self


class Checkpoint(Section):
    every_steps: Positive = 100
    keep_last: Positive = 3
    background: bool = Field(True, description="training goes on while the checkpoint is written")


class Validation(Section):
    every_steps: Positive = 100
    max_samples: Positive | None = Field(None, description="default: the whole validation set")


class Workers(Section):
    count: Positive = 1
    cpus: Positive = Field(1, description="per worker")
    gpus: NonNegative = Field(0, le=1, description="per worker: 0 or 1")
    max_failures: NonNegative = Field(3, description="restarts before the run fails")


class Monitor(Section):
    every_steps: Positive = 10
    audit_samples: bool = Field(False, description="write the sample keys of every step to audit/")


class Recipe(Section):
    """One training run. Keys are documented in docs/recipes.md, generated from here."""

    run: Run
    model: Model
    data: Data
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss_scale: LossScale = LossScale()
    ema: Ema | None = None
    zero: Zero = Zero()
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation | None = None
    workers: Workers = Workers()
    monitor: Monitor = Monitor()

    @model_validator(mode="before")
    @classmethod
    def _fill_lanes(cls, fields: Any) -> Any:
        """Write the default of data.lanes out: it depends on batch.global and is part of the run's order."""
        data, batch = (fields.get(name) if isinstance(fields, dict) else None for name in ("data", "batch"))
        count = batch.get("global") if isinstance(batch, dict) else None
        if isinstance(data, dict) and "lanes" not in data and isinstance(count, int) and count > 0:
            return {**fields, "data": {**data, "lanes": max(n for n in range(1, 65) if count % n == 0)}}
        return fields

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        wants_image = self.model.kind == "resnet"
        if wants_image != (self.data.kind == "image"):
            fits = "image" if wants_image else "text or tokens"
            raise ValueError(f"data.kind is {self.data.kind}, but model.kind {self.model.kind} trains on {fits}")
        if self.validation is not None and self.data.val is None:
            raise ValueError("validation is asked for, but data.val is not given: add data.val.shards")
        if self.schedule.warmup_steps > self.run.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, more than run.steps {self.run.steps}"
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(f"schedule.min_lr is {self.schedule.min_lr}, above optimizer.lr {self.optimizer.lr}")
        if self.batch.global_ % self.data.lanes:
            raise ValueError(
                f"data.lanes is {self.data.lanes}, which does not divide batch.global {self.batch.global_}: "
                f"choose it from {_divisors(self.batch.global_)}"
            )
        # DeepSpeed 0.19.8 does not scale the fp16 loss at stage 0, but unscales its gradients.
        if self.precision == "fp16" and self.zero.stage == 0:
            raise ValueError("precision fp16 needs zero.stage 1, 2 or 3: stage 0 trains wrongly in DeepSpeed")
        return self


def _divisors(value: int) -> str:
    return ", ".join(str(d) for d in range(1, value + 1) if value % d == 0)
