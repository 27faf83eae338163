"""The recipe's schema: every key, its type, default, bounds and meaning. Only valid recipes exist."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.sections.cloud_section import Cloud
from configs.sections.data_section import Data
from configs.sections.model_section import Model, UserModel
from configs.sections.optimizer_section import Optimizer
from configs.sections.section import NonNegative, Positive, Rate, Section, divisors
from configs.sections.slurm_section import Slurm

__all__ = ["Batch", "Checkpoint", "Recipe", "Schedule", "Spike", "Workers"]


_MOST_WORKERS = 2**20


class Run(Section):
    """Which run this is, and how long it goes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder under `dir`")
    dir: str = Field("runs", min_length=1, description="where run folders are made")
    seed: NonNegative = Field(1337, description="keys every random draw")
    steps: Positive = Field(description="optimizer steps (global batches) of the whole run")


class Batch(Section):
    """The global batch and its parts; gradient accumulation follows from these and the number of workers."""

    global_: Positive = Field(alias="global", le=2**24, description="samples (rows or images) per optimizer step")
    micro: Positive = Field(description="samples per forward and backward on one worker")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.micro > self.global_:
            raise ValueError(f"batch.micro is {self.micro}, larger than batch.global {self.global_}: lower batch.micro")
        if self.global_ % self.micro:
            raise ValueError(
                f"batch.global is {self.global_}, not a multiple of batch.micro {self.micro}: "
                f"choose batch.micro from {divisors(self.global_)}"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches per global batch, the same for any number of workers."""
        return self.global_ // self.micro

    def accumulation(self, workers: int) -> int:
        """Forward/backward rounds per step; in the last round some workers may run an empty micro-batch."""
        return -(-self.micro_batches // workers)


class Schedule(Section):
    """Learning rate as a function of the step alone (trainer/training/lr_schedule.py)."""

    kind: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt", "one_cycle", "cosine_restarts"] = "cosine"
    warmup_steps: NonNegative = 0
    min_lr: Rate = Field(0.0, description="reached at the last step; of cosine_restarts, before each restart")
    decay_steps: Positive | None = Field(None, description="wsd: the last steps, over which the rate falls to min_lr")
    period_steps: Positive | None = Field(None, description="cosine_restarts: from the warm-up to the first restart")
    period_factor: Positive | None = Field(
        None, description="cosine_restarts: a period is so many times the one before; default: as long"
    )

    @model_validator(mode="after")
    def _has_its_keys(self) -> Self:
        needs = {"wsd": "decay_steps", "cosine_restarts": "period_steps", "one_cycle": "warmup_steps"}.get(self.kind)
        if needs and not getattr(self, needs):
            raise ValueError(f"schedule.kind {self.kind} needs schedule.{needs}: give the number of steps")
        return self


class LossScale(Section):
    """Dynamic loss scaling of fp16 (Micikevicius et al. 2018)."""

    initial_power: int = Field(16, ge=0, le=32, description="starts at 2**initial_power")
    window_steps: Positive = Field(1000, description="doubles after this many steps without overflow")
    hysteresis: Positive = Field(2, description="overflows before it halves")
    min_scale: float = Field(1.0, gt=0.0, description="a whole number; an overflow at this scale is a bad number")
    max_skipped_steps: Positive = Field(20, description="overflows in a row; the last of so many is a bad number")


class Ema(Section):
    """Exponential moving average of the weights (Polyak and Juditsky 1992), for validation, samples and export."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.999, description="the n-th update uses min(decay, (1 + n)/(10 + n)): early on, the average is short"
    )


class Zero(Section):
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020): what is divided among the workers, and what lies in host memory."""

    stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_parameters: Literal["none", "cpu"] = "none"
    reduce_dtype: Literal["fp32", "model"] = Field(
        "fp32",
        description="in which gradients are summed over workers; model: in `precision`, half the bytes if that is half "
        "precision, and rounded at each addition",
    )

    @model_validator(mode="after")
    def _offload_needs_stage(self) -> Self:
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError("zero.offload_optimizer needs zero.stage 1, 2 or 3")
        if self.offload_parameters != "none" and self.stage != 3:
            raise ValueError(f"zero.offload_parameters needs zero.stage 3, found {self.stage}")
        return self


class KeepBest(Section):
    """Keeps checkpoints of steps that were validated, by one figure of metrics.jsonl."""

    metric: str = Field(
        "val_loss",
        pattern=r"^val_[a-z0-9_]+$",
        description="val_loss, val_perplexity (gpt), val_accuracy (resnet) or one of a task of your own",
    )
    mode: Literal["min", "max"] | None = Field(None, description="default: max for val_accuracy, min for the others")
    count: Positive = 1

    @property
    def natural_mode(self) -> Literal["min", "max"]:
        """Which end of the metric is the good one."""
        return "max" if self.metric == "val_accuracy" else "min"


class Checkpoint(Section):
    """When checkpoints are written, where, and which are kept."""

    every_steps: Positive = 100
    keep_last: Positive = 3
    keep_every_steps: Positive | None = Field(None, description="those of multiples of this step are kept for good")
    keep_best: KeepBest | None = Field(None, description="besides the last, those with the best validation")
    background: bool = Field(True, description="training goes on while the checkpoint is written")
    when_busy: Literal["wait", "skip"] = Field(
        "wait", description="when one is due and the one before is still being written"
    )
    max_failed_saves: Positive = Field(5, description="saves that fail in a row before the run stops, with the cause")
    dir: str | None = Field(
        None,
        min_length=1,
        description="a folder or s3://, gs://, az:// prefix to which {run.name} is added; default: in the run folder",
    )

    @model_validator(mode="after")
    def _multiples(self) -> Self:
        if self.keep_every_steps and self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"checkpoint.keep_every_steps is {self.keep_every_steps}, not a multiple of checkpoint.every_steps "
                f"{self.every_steps}: no checkpoint would be of such a step"
            )
        return self


class Validation(Section):
    """When the model is validated on `data.val`, and the text it writes then."""

    every_steps: Positive = 100
    max_samples: Positive | None = Field(None, description="default: the whole validation set")
    sample_tokens: NonNegative = Field(
        200, description="of a text that the model writes, one forward pass for each on every worker (gpt); 0: none"
    )
    sample_every_steps: Positive | None = Field(
        None, description="a multiple of every_steps; default: at each validation. Also after the last step"
    )

    @model_validator(mode="after")
    def _samples_meet(self) -> Self:
        if self.sample_every_steps and self.sample_every_steps % self.every_steps:
            raise ValueError(
                f"validation.sample_every_steps is {self.sample_every_steps}, not a multiple of validation.every_steps "
                f"{self.every_steps}: samples are made where there is a validation; choose a multiple"
            )
        return self


class Workers(Section):
    """How many workers train, on what, and when they are started again."""

    count: Positive | str = Field(
        1, description='a number, or "2..8": as many as there is room for, resized as nodes go and come'
    )
    cpus: int | float = Field(
        1, ge=0.01, le=2**16, description="per worker; 0.5: two share one, to try many workers on few"
    )
    gpus: NonNegative = Field(0, le=1, description="per worker: 0 or 1")
    max_failures: NonNegative = Field(
        3, description="restarts in a row without a newer checkpoint before the run fails"
    )
    hang_timeout_s: float = Field(
        10.0, ge=1.0, description="a step that makes no progress for longer than this and five median steps is a hang"
    )
    grow_within_s: float = Field(
        300.0,
        ge=0.0,
        description="with a range: new nodes are used from the next checkpoint on, one at this age at the latest",
    )

    @field_validator("cpus")
    @classmethod
    def _whole(cls, cpus: float) -> float:
        """2.0 is 2: what counts whole ones gets an integer."""
        return int(cpus) if cpus == int(cpus) else cpus

    @model_validator(mode="after")
    def _range(self) -> Self:
        if isinstance(self.count, str):
            least, dots, most = self.count.partition("..")
            if not (dots and least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
                raise ValueError(f'workers.count is {self.count!r}: give a number, or a range such as "2..8"')
        if self.most > _MOST_WORKERS:
            raise ValueError(f"workers.count is {self.count}: give at most {_MOST_WORKERS}")
        return self

    @property
    def least(self) -> int:
        """The number of workers, or the lower end of the range."""
        return int(str(self.count).partition("..")[0])

    @property
    def most(self) -> int:
        """The number of workers, or the upper end of the range."""
        return int(str(self.count).rpartition("..")[2])

    @property
    def threads(self) -> int:
        """Of one worker, for torch and for decoding."""
        return max(1, int(self.cpus))

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.least < self.most


class Spike(Section):
    """A loss far above the recent ones, by a robust z-score: (loss - median) / (1.4826 · median absolute deviation)."""

    window_steps: int = Field(100, ge=2, description="recent good losses to compare with; none is judged before")
    z: float = Field(10.0, gt=0.0, description="a larger z-score is a spike")


class BadNumbers(Section):
    """What to do with a step whose loss or gradient is no number, or whose loss leaps (trainer/step_health/)."""

    policy: Literal["stop", "skip_batch", "rollback"] = Field(
        "stop",
        description="skip_batch: make no update with that global batch; rollback: go back to the checkpoint before it "
        "and leave it out; the result is the same, skip_batch costs an agreement per step, rollback only when it acts",
    )
    max_events: Positive = Field(10, description="global batches left out in the whole run; one more stops it")
    spike: Spike | None = Field(None, description="default: a finite loss is never bad")


class Monitor(Section):
    """What is written of the steps: metrics.jsonl, TensorBoard and audit/."""

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
    bad_numbers: BadNumbers = BadNumbers()
    monitor: Monitor = Monitor()
    slurm: Slurm | None = None
    cloud: Cloud | None = None

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
        if not isinstance(self.model, UserModel) and wants_image != (self.data.kind == "image"):
            fits = "image" if wants_image else "text or tokens"
            raise ValueError(f"data.kind is {self.data.kind}, but model.kind {self.model.kind} trains on {fits}")
        if self.validation is not None and self.data.val is None:
            raise ValueError("validation is asked for, but data.val is not given: add data.val.shards")
        if self.checkpoint.keep_best is not None and self.validation is None:
            raise ValueError("checkpoint.keep_best needs validation: add the section, or remove keep_best")
        if self.batch.global_ % self.data.lanes:
            raise ValueError(
                f"data.lanes is {self.data.lanes}, which does not divide batch.global {self.batch.global_}: "
                f"choose it from {divisors(self.batch.global_)}"
            )
        # DeepSpeed 0.19.8 does not scale the fp16 loss at stage 0, but unscales its gradients.
        if self.precision == "fp16" and self.zero.stage == 0:
            raise ValueError("precision fp16 needs zero.stage 1, 2 or 3: stage 0 trains wrongly in DeepSpeed")
        least, first = self.loss_scale.min_scale, 2**self.loss_scale.initial_power
        if self.precision == "fp16" and (not least.is_integer() or least > first):
            raise ValueError(f"loss_scale.min_scale is {least:g}: give a whole number up to 2**initial_power, {first}")
        if self.precision == "fp16" and self.loss_scale.max_skipped_steps <= self.loss_scale.hysteresis:
            raise ValueError(
                f"loss_scale.max_skipped_steps is {self.loss_scale.max_skipped_steps}, and the scale halves only at "
                f"overflow {self.loss_scale.hysteresis} (loss_scale.hysteresis): raise it above that"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.schedule.warmup_steps > self.run.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, more than run.steps {self.run.steps}"
            )
        if self.schedule.warmup_steps + (self.schedule.decay_steps or 0) > self.run.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} and decay_steps {self.schedule.decay_steps} are "
                f"together more than run.steps {self.run.steps}"
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(f"schedule.min_lr is {self.schedule.min_lr}, above optimizer.lr {self.optimizer.lr}")
        return self
