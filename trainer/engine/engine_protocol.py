"""What the loop needs of an engine: one optimizer step, one evaluation, and the whole state as plain data."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from data.batch import MicroBatch

__all__ = ["Admit", "Engine", "Extent", "Fragment", "ReadSlice", "Scalars", "StepResult"]


ReadSlice = Callable[[int, int], torch.Tensor]  # [start, stop) of a flattened parameter
ReadState = Callable[[str, str], ReadSlice | None]  # kind, parameter; None when not stored
Extent = tuple[str, int, int]  # [start, stop) of a flattened parameter
Admit = Callable[[torch.Tensor], bool]  # this rank's sum of losses -> the same answer on every rank


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step, on this rank; sums of local micro-batches stay on the device until asked for."""

    loss_sum: torch.Tensor
    grad_norm: torch.Tensor | float
    loss_scale: float
    skipped: bool  # fp16 overflow, for which the loss scale was lowered: no update was made
    dropped: bool = False  # no update was made either: it was not admitted, or a gradient was no number
    overflows_in_a_row: int = 0  # of fp16 gradients, with this step; those left out before neither count nor end it
    own_s: float = 0.0  # of this rank's own work, without waiting for others; 0 where that is not known


@dataclass(frozen=True)
class Fragment:
    """A run of consecutive elements of one parameter's state that lives on this rank.

    `kind` is "master" (fp32 weights), "ema" (their average) or the optimizer's name of an element-wise state, such as
    "exp_avg".
    `start` counts elements of the flattened parameter. `tensor` is a 1-D fp32 view of live memory.
    """

    parameter: str
    kind: str
    start: int
    tensor: torch.Tensor


@dataclass
class Scalars:
    """The small rest of an engine's state, equal on every rank: plain JSON values."""

    groups: dict[str, dict[str, Any]] = field(default_factory=dict)  # hyper-parameters and step count by group
    loss_scaler: dict[str, float | int] = field(default_factory=dict)
    skipped_steps: int = 0
    ema_updates: int = 0
    skipped_in_a_row: int = 0  # by the loss scaler, up to now


class Engine(Protocol):
    """One parameter-sharding strategy over all workers. Every method is called on every rank, in the same order."""

    name: str
    device: torch.device

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        step: int,
        total_weight: float,
        lr: float,
        admit: Admit | None = None,
    ) -> StepResult:
        """Forward and backward of each micro-batch, then one update with gradients of sum(loss) / total_weight.

        `admit` is asked before the update; where it says no, and with it where a gradient is no number, the state
        stays as it was, in every bit.
        """

    def skip_update(self, lr: float) -> None:
        """A step without any update: leaves the state as `train_step` does when `admit` says no."""

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> dict[str, float]:
        """Sums of the task's outputs over this rank's micro-batches, in evaluation mode."""

    def sample(self, length: int) -> str | None:
        """What the task shows of itself, such as a generated text of `length` tokens; None without samples."""

    def ema_weights(self) -> AbstractContextManager[None]:
        """Inside, the model computes with its averaged weights where the recipe has `ema`, else with its own."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each trainable parameter by name; tied parameters once."""

    def fragments(self) -> Iterator[Fragment]:
        """This rank's share of the master weights and optimizer states; together the ranks cover each exactly once."""

    def extents(self) -> Iterator[Extent]:
        """What `load` will read of each stored kind; the ranks' extents cover every parameter."""

    def buffers(self) -> dict[str, torch.Tensor]:
        """Persistent buffers and frozen parameters, equal on every rank."""

    def scalars(self) -> Scalars:
        """Everything else that the next step depends on."""

    def load(self, read: ReadState, buffers: dict[str, torch.Tensor], scalars: Scalars) -> None:
        """Take over a stored state. `read(kind, parameter)` gives a reader of [start, stop), or None if not stored.

        Raises CheckpointError when the state is of another model, EngineError when it does not arrive.
        """

    def not_finite(self) -> str | None:
        """The first thing of this rank's part of the state that holds an infinity or a NaN, also as the model uses it.

        Waits for the device.
        """

    def close(self) -> None:
        """Release what the engine holds beyond the process's own memory."""


def to_device(batch: MicroBatch, device: torch.device) -> dict[str, torch.Tensor]:
    """Host arrays as tensors on `device`, without waiting for the copy."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.arrays.items()}
    if device.type == "cpu":
        return tensors
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}


def add_sums(total: dict[str, Any], sums: dict[str, torch.Tensor]) -> None:
    """Accumulate detached sums, on the device."""
    for name, value in sums.items():
        total[name] = total[name] + value.detach() if name in total else value.detach()
