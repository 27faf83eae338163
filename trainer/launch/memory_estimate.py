"""What a recipe will cost, by arithmetic alone: parameters, operations, checkpoint and memory per worker."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from configs.recipe import Recipe
from configs.sections.data_section import ImageData
from configs.sections.model_section import GptModel, ResnetModel, UserModel, context_of
from configs.sections.optimizer_section import Optimizer
from data.text.tokenizer import vocab_size
from trainer.models.cost import (
    gpt_activation_bytes,
    gpt_flops_per_token,
    resnet_activation_bytes,
    resnet_flops_per_image,
    shapes_only,
)
from trainer.models.gpt import Gpt
from trainer.models.resnet import Resnet
from trainer.tasks.task_protocol import parameter_groups
from trainer.tasks.user_task import UserTask, check_parameters, flops_of, open_user_task

__all__ = ["estimate"]


FP32_BYTES = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker at one ZeRO stage. `activations_bytes` is an estimate, the rest follows from the sharding.

    Not included: DeepSpeed's communication buckets, the allocator's gaps, the process itself.
    """

    stage: Stage
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    offloaded_bytes: int  # in host memory instead

    @property
    def device_bytes(self) -> int:
        """All that lies where the worker computes."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


@dataclass(frozen=True)
class Estimate:
    """Figures of a recipe; `unit`: what a target is, such as token or image."""

    unit: str
    parameters: int
    parameters_by_group: dict[str, int]
    flops_per_target: float  # forward and backward
    targets_per_step: int
    checkpoint_bytes: int
    memory: tuple[WorkerMemory, ...]  # for ZeRO stages 0, 1, 2, 3

    @property
    def flops_per_step(self) -> float:
        """Over all workers."""
        return self.flops_per_target * self.targets_per_step


@dataclass(frozen=True)
class _ModelCost:
    model: nn.Module
    flops_per_target: float
    targets_per_sample: int
    activations_bytes: int
    unit: str


def estimate(recipe: Recipe) -> Estimate:
    """Figures for recipe.workers.least workers; the model is built from shapes alone."""
    cost = _model_cost(recipe)
    groups = parameter_groups(cost.model, recipe.optimizer)
    counts = {group.name: sum(p.numel() for p in group.parameters) for group in groups}
    parameters = sum(counts.values())
    buffers_bytes = sum(buffer.nbytes for buffer in cost.model.buffers())
    return Estimate(
        unit=cost.unit,
        parameters=parameters,
        parameters_by_group={str(name): count for name, count in counts.items()},
        flops_per_target=cost.flops_per_target,
        targets_per_step=cost.targets_per_sample * recipe.batch.global_,
        checkpoint_bytes=parameters * FP32_BYTES * (1 + _kept_values(recipe)) + buffers_bytes,
        memory=tuple(worker_memory(recipe, parameters, stage, cost.activations_bytes) for stage in STAGES),
    )


def _kept_values(recipe: Recipe) -> int:
    return moments(recipe.optimizer) + (recipe.ema is not None)


def moments(optimizer: Optimizer) -> int:
    """fp32 values that the optimizer keeps per parameter, besides the weight."""
    match optimizer.kind:
        case "adamw" | "adam":
            return 2
        case "rmsprop":
            return 2 if optimizer.momentum else 1
        case "sgd":
            return 1 if optimizer.momentum else 0


def worker_memory(recipe: Recipe, parameters: int, stage: Stage, activations_bytes: int) -> WorkerMemory:
    """Sharding as in ZeRO (Rajbhandari et al. 2020, section 5), offloading as in ZeRO-Offload (Ren et al. 2021).

    Two differences of this engine: gradients of several micro-batches add up in fp32 (stages 1–3), not in half
    precision; and in fp32 too, DeepSpeed keeps a master copy of the weights apart from the model (stages 1–3).
    """
    element_bytes = DTYPES[recipe.precision].itemsize
    shard = -(-parameters // recipe.workers.least)
    has_master = stage > 0 or recipe.precision != "fp32"
    weights = element_bytes * (shard if stage == 3 else parameters)
    gradients = (FP32_BYTES if stage else element_bytes) * (shard if stage >= 2 else parameters)
    optimizer = FP32_BYTES * (has_master + _kept_values(recipe)) * (shard if stage else parameters)
    offloaded = 0
    if recipe.zero.offload_optimizer == "cpu" and stage:
        offloaded, optimizer = offloaded + optimizer, 0
        if stage >= 2:
            offloaded, gradients = offloaded + gradients, 0
    if recipe.zero.offload_parameters == "cpu" and stage == 3:
        offloaded, weights = offloaded + weights, 0
    return WorkerMemory(stage, weights, gradients, optimizer, activations_bytes, offloaded)


def _model_cost(recipe: Recipe) -> _ModelCost:
    model, data = recipe.model, recipe.data
    if isinstance(model, GptModel):
        return _gpt_cost(recipe, model)
    if isinstance(model, UserModel):
        return _user_cost(recipe, model)
    assert isinstance(data, ImageData), "the schema refuses other data"
    return _resnet_cost(recipe, model, data)


def _gpt_cost(recipe: Recipe, config: GptModel) -> _ModelCost:
    vocab = config.vocab or vocab_size(recipe)
    with shapes_only():
        model = Gpt(config, vocab)
    assert not isinstance(recipe.data, ImageData), "the schema refuses images"
    element_bytes, masked = DTYPES[recipe.precision].itemsize, recipe.data.document_mask
    activations = gpt_activation_bytes(config, vocab, recipe.batch.micro, element_bytes, masked)
    return _ModelCost(model, gpt_flops_per_token(model), config.context, activations, "token")


def _resnet_cost(recipe: Recipe, config: ResnetModel, data: ImageData) -> _ModelCost:
    with shapes_only():
        model = Resnet(config, data.channels)
    element_bytes = DTYPES[recipe.precision].itemsize
    activations = resnet_activation_bytes(model, data.size, recipe.batch.micro, element_bytes)
    return _ModelCost(model, resnet_flops_per_image(model, data.size), 1, activations, "image")


def _user_cost(recipe: Recipe, model: UserModel) -> _ModelCost:
    """Its activations are not known: they are counted as none, which `describe` says."""
    task = open_user_task(recipe, model)
    try:
        with shapes_only():
            module = task.build()
        flops = flops_of(task, module)
    except (Exception, SystemExit):  # it may need values while it is built: then as it will be at the start of the run
        module = UserTask(task, recipe.optimizer).module
        flops = flops_of(task, module)
    check_parameters(task, module)
    per_sample = context_of(model) if task.units == "tokens" else 1
    return _ModelCost(module, flops, per_sample, 0, str(task.units).removesuffix("s"))
