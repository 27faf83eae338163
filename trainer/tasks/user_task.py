"""A task of the user's own (trainer/api.py) as the engine and the loop know tasks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from configs.errors import DataError, RecipeError, UserCodeError
from configs.reading.user_code import UserCode, describe
from configs.recipe import Recipe
from configs.sections.data_section import ImageData
from configs.sections.model_section import UserModel
from configs.sections.optimizer_section import Optimizer
from data.text.tokenizer import vocab_size
from trainer import api
from trainer.tasks.task_protocol import ParameterGroup, parameter_groups

__all__ = ["UserTask", "check_parameters", "flops_of", "open_user_task"]


_UNITS = ("tokens", "images", "samples")


class UserModule(nn.Module):
    """The user's module with the user's sums after it, so that both go through the engine."""

    def __init__(self, task: api.Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Sums over the micro-batch as fp32 scalars, "loss" and "weight" among them. Raises UserCodeError."""
        sums = self._task.sums(self.model, batch)
        name = f"{type(self._task).__name__}.sums"
        if not isinstance(sums, dict) or not {"loss", "weight"} <= sums.keys():
            found = sorted(map(str, sums)) if isinstance(sums, dict) else type(sums).__name__
            raise UserCodeError(f'{name} gives {found}: return a dictionary with "loss" and "weight"')
        for key, value in sums.items():
            if not isinstance(key, str) or not isinstance(value, Tensor) or value.is_complex():
                raise UserCodeError(f"{name} gives {key!r}: {value!r:.60}: give real tensors by name, such as x.sum()")
            if value.numel() != 1:
                shape = tuple(value.shape)
                raise UserCodeError(f"{name} gives {key!r} of shape {shape}: every entry is one number, a sum")
        if torch.is_grad_enabled() and self.training and not sums["loss"].requires_grad:
            raise UserCodeError(f'{name} gives a "loss" without a gradient: work it out of what the module gives')
        return {key: value.float().reshape(()) for key, value in sums.items()}


class UserTask:
    """Trains a model of the user's own."""

    def __init__(self, task: api.Task, optimizer: Optimizer) -> None:
        """Raises UserCodeError for an error in `build`."""
        try:
            model = task.build()
        except (Exception, SystemExit) as error:
            raise UserCodeError(describe(error)) from error
        if not isinstance(model, nn.Module):
            raise UserCodeError(f"{type(task).__name__}.build gives {type(model).__name__}: return a torch.nn.Module")
        check_parameters(task, model)
        assert task.units is not None, "`open_user_task` has set it"
        self.units: Literal["tokens", "images", "samples"] = task.units
        self.module: nn.Module = UserModule(task, model)
        self._task, self._optimizer = task, optimizer
        # Counted now: ZeRO-3 takes the parameters apart.
        self._flops = flops_of(task, model)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Matrices decay; norms and biases do not, embeddings only with optimizer.decay_embeddings."""
        return parameter_groups(self.module, self._optimizer)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """As the task has them; the mean loss where it leaves that out."""
        if sums["weight"] == 0:
            raise DataError(
                "the batch or validation set holds no valid target: every label is padding; check the shards"
            )
        found = self._task.metrics(sums)
        name = f"{type(self._task).__name__}.metrics"
        if not isinstance(found, dict) or not all(isinstance(value, int | float) for value in found.values()):
            raise UserCodeError(f"{name} gives {found!r:.80}: return a dictionary of numbers, such as float(x)")
        return {"loss": sums["loss"] / sums["weight"], **found}

    def samples(self, forward: Callable[[Tensor], Tensor], device: torch.device, length: int) -> str | None:
        """The task's own."""
        return self._task.samples(forward, device, length)

    def flops_per_target(self) -> float:
        """The task's own, by default from the number of parameters."""
        return self._flops


def open_user_task(recipe: Recipe, model: UserModel, copy: Path | None = None) -> api.Task:
    """The user's task, without its model. `copy`: of the file, in a run folder. Raises RecipeError, UserCodeError."""
    code = UserCode.of(model.kind)
    found: Any = code.load(copy)
    if not issubclass(found, api.Task):
        raise RecipeError(f"model.kind: class {code.name} of {code.path} is no trainer.api.Task: derive it from that")
    try:
        task: api.Task = found(found.Config.model_validate(model.settings), _facts(recipe))
    except (Exception, SystemExit) as error:
        raise UserCodeError(describe(error)) from error
    if task.units is None:
        task.units = "images" if recipe.data.kind == "image" else "tokens"
    if task.units not in _UNITS:
        raise UserCodeError(f"{code.name}.units is {task.units!r}: choose from {', '.join(_UNITS)}")
    if (task.units == "tokens") == (recipe.data.kind == "image"):
        fits = '"images" or "samples"' if recipe.data.kind == "image" else '"tokens"'
        raise UserCodeError(f"{code.name}.units is {task.units!r}, and data.kind is {recipe.data.kind}: set {fits}")
    return task


def flops_of(task: api.Task, model: nn.Module) -> float:
    """Of one target, as the task has it. Raises UserCodeError."""
    try:
        found = task.flops_per_target(sum(parameter.numel() for parameter in model.parameters()))
    except Exception as error:
        raise UserCodeError(describe(error)) from error
    if not isinstance(found, int | float):
        raise UserCodeError(f"{type(task).__name__}.flops_per_target gives {found!r:.60}: return a number")
    return float(found)


def check_parameters(task: api.Task, model: nn.Module) -> None:
    """Raises UserCodeError where nothing is to be trained, or not in fp32 masters."""
    named = dict(model.named_parameters())
    name = type(task).__name__
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserCodeError(f"{name}.build gives a module without a parameter to train")
    for key, parameter in named.items():
        if parameter.dtype != torch.float32:
            raise UserCodeError(
                f"{name}.build: parameter {key} is {parameter.dtype}: build in torch.float32; the recipe's precision "
                "says in what it is trained"
            )


def _facts(recipe: Recipe) -> api.Facts:
    if isinstance(recipe.data, ImageData):
        return api.Facts(recipe.run.seed, size=recipe.data.size, channels=recipe.data.channels)
    return api.Facts(recipe.run.seed, vocab=vocab_size(recipe))
