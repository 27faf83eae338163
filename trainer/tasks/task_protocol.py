"""What the engine and the loop know of a task, and what all tasks share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from configs.errors import DataError
from configs.sections.optimizer_section import Optimizer

__all__ = ["EngineTask", "ParameterGroup", "parameter_groups"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimizer treats alike."""

    name: Literal["decay", "no_decay"]
    parameters: list[nn.Parameter]
    weight_decay: float


class EngineTask(Protocol):
    """A model with its loss, metrics and samples; engine and loop do not know which one runs.

    `module(**tensors)` returns sums over the micro-batch as fp32 scalars: always "loss" (over the valid targets) and
    "weight" (number of valid targets), and what `metrics` needs besides.
    """

    module: nn.Module
    units: Literal["tokens", "images", "samples"]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every trainable parameter exactly once; no empty group."""
        ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means from the sums of `module` over any number of micro-batches; "loss" among them."""
        ...

    def samples(self, forward: Callable[[Tensor], Tensor], device: torch.device, length: int) -> str | None:
        """What the model makes, for people to look at; None for a task that makes nothing.

        `length` counts what it makes one after another, such as tokens. `forward` is the engine's; it is called equally
        often on every worker.
        """
        ...

    def flops_per_target(self) -> float:
        """Floating-point operations of forward and backward per unit, recomputation not counted."""
        ...


def parameter_groups(module: nn.Module, optimizer: Optimizer) -> list[ParameterGroup]:
    """The groups of `module`: norms and biases are not decayed, embeddings only with optimizer.decay_embeddings."""
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim < 2 or (id(parameter) in embeddings and not optimizer.decay_embeddings)
        (no_decay if spared else decay).append(parameter)
    groups = [ParameterGroup("decay", decay, optimizer.weight_decay), ParameterGroup("no_decay", no_decay, 0.0)]
    return [group for group in groups if group.parameters]


def mean_per_target(sums: Mapping[str, float], name: str) -> float:
    """sums[name] per valid target. Raises DataError where no target is valid."""
    if sums["weight"] == 0:
        raise DataError("the batch or validation set holds no valid target: every label is padding; check the shards")
    return sums[name] / sums["weight"]
