"""The one import of a task of your own: `from trainer import api`; a recipe has `model: {kind: my_file.py:MyTask}`.

class MyTask(api.Task):
    class Config(api.Config):
        width: int = 64
        classes: int = 10

    def build(self) -> nn.Module: ...

    def sums(self, module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

__all__ = ["Facts", "Task"]


class Config(BaseModel):
    """The task's own keys of the recipe's `model` section, with their defaults. Unknown keys are errors.

    Rows of text need `context: int`, images need `classes: int`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Facts:
    """What the recipe says besides. `vocab`: token ids of the data; `size`, `channels`: of its images; 0: has none."""

    seed: int
    vocab: int = 0
    size: int = 0
    channels: int = 0


class Task:
    """A model, its loss and its metrics. Everything random in it must come from torch's own generator."""

    Config: ClassVar[type[BaseModel]] = Config
    units: Literal["tokens", "images", "samples"] | None = None  # what a target is; None: as the data has it

    def __init__(self, config: Any, facts: Facts) -> None:
        """`config`: of the class's own Config."""
        self.config, self.facts = config, facts

    def build(self) -> nn.Module:
        """The model with its initial weights, which follow from run.seed: torch's generator is seeded."""
        raise NotImplementedError(f"{type(self).__name__} has no build(self)")

    def sums(self, module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over one micro-batch: "loss", "weight" (the number of targets in it), and any other to report.

        `batch`: tokens_BT and targets_BT (int64) of text and tokens; images_BHWC (uint8) and labels_B (int64) of
        images. A target or label of -100 counts for nothing. Never means: a global batch is cut into micro-batches in
        any way.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sums(self, module, batch)")

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is reported of sums over any number of micro-batches: by default each one over the weight."""
        return {name: value / sums["weight"] for name, value in sums.items() if name != "weight"}

    def samples(self, forward: Callable[..., Any], device: torch.device, length: int) -> str | None:
        """A text that shows what the model makes, after a validation; None: nothing. The same on every worker."""
        return None

    def flops_per_target(self, parameters: int) -> float:
        """Forward and backward; by default 6 per parameter, as of a matrix product (Kaplan et al. 2020)."""
        return 6.0 * parameters
