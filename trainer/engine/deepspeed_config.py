"""Recipe -> DeepSpeed's configuration, and the optimizer that it wraps: pure, and without importing deepspeed."""

from typing import Any

import torch

from configs.recipe import Recipe
from configs.sections.optimizer_section import Optimizer
from trainer.tasks.task_protocol import ParameterGroup


def deepspeed_config(recipe: Recipe, workers: int) -> dict[str, Any]:
    """DeepSpeed's JSON configuration. The learning rate is not in it: the loop sets it from the position."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.batch.micro,
        "gradient_accumulation_steps": recipe.batch.accumulation(workers),
        "gradient_clipping": recipe.optimizer.grad_clip if recipe.zero.stage or recipe.precision != "fp32" else 0.0,
        "steps_per_print": 10**12,
        "zero_allow_untested_optimizer": True,  # torch's SGD; element-wise, so it may be sharded
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast on the host and needs no compiler
        "zero_optimization": _zero(recipe),
    }
    if recipe.precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": recipe.loss_scale.initial_power,
            "loss_scale_window": recipe.loss_scale.window_steps,
            "hysteresis": recipe.loss_scale.hysteresis,
            "min_loss_scale": int(recipe.loss_scale.min_scale),
        }
    if recipe.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if recipe.precision != "fp32" and recipe.zero.stage:
        # Micro-batch gradients add up in fp32, or the sum would depend on how the batch is cut.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if recipe.precision != "fp32" and recipe.zero.reduce_dtype == "fp32":
        config["communication_data_type"] = "fp32"
    return config


def _zero(recipe: Recipe) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": recipe.zero.stage}
    if recipe.zero.stage in (1, 2):
        # Each gradient goes to the rank that owns it, as in a reduce-scatter; else every rank gets all sums, which is
        # twice the bytes.
        zero["use_multi_rank_bucket_allreduce"] = False
    for key, device in (("optimizer", recipe.zero.offload_optimizer), ("param", recipe.zero.offload_parameters)):
        if device != "none":
            zero[f"offload_{key}"] = {"device": device, "pin_memory": recipe.workers.gpus > 0}
    return zero


def build_optimizer(settings: Optimizer, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """torch's optimizer of the recipe's kind, at learning rate 0. All work element by element, so ZeRO may cut them."""
    parameters = [{"params": g.parameters, "weight_decay": g.weight_decay, "name": g.name} for g in groups]
    # DeepSpeed takes a phantom step while it initialises half precision: at rate 0 it changes no weight.
    match settings.kind:
        case "adamw" | "adam":
            kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
            first, second = settings.betas
            return kind(parameters, lr=0.0, betas=(first, second), eps=settings.eps, fused=True)
        case "rmsprop":
            momentum, eps = settings.momentum, settings.eps
            return torch.optim.RMSprop(parameters, lr=0.0, alpha=settings.alpha, eps=eps, momentum=momentum)
        case "sgd":
            return torch.optim.SGD(parameters, lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov)
