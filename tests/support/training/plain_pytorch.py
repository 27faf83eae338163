"""Single-process PyTorch, with nothing of Stoker's engine: what the engine must agree with."""

from typing import Any

import torch

from configs.recipe import Recipe
from configs.sections.optimizer_section import Optimizer
from data.batch import Slice
from data.dataset import open_dataset, read_micro_batch
from trainer.tasks.build_task import build_task
from trainer.training.lr_schedule import learning_rate


def reference_losses_and_gradients(recipe: Recipe, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the first steps, and the gradients of the first, of the whole global batch at once."""
    torch.set_num_threads(1)
    task, data = build_task(recipe), open_dataset(recipe, "train")
    module, settings = task.module, recipe.optimizer
    optimizer = _optimizer(settings, list(module.parameters()))
    losses, gradients = [], {}
    for step in range(1, steps + 1):
        start = (step - 1) * recipe.batch.global_
        batch = read_micro_batch(data, step, Slice(0, start, start + recipe.batch.global_), recipe.batch.global_)
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.arrays.items()}
        sums = module(**tensors)
        loss = sums["loss"] / sums["weight"]
        optimizer.zero_grad()
        loss.backward()
        if step == 1:
            gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.schedule, settings.lr, step, recipe.run.steps)
        optimizer.step()
        losses.append(loss.item())
    return losses, gradients


def _optimizer(settings: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    match settings.kind:
        case "sgd":
            return torch.optim.SGD(parameters, lr=0.0, momentum=settings.momentum)
        case "rmsprop":
            options = {"alpha": settings.alpha, "eps": settings.eps, "momentum": settings.momentum}
            return torch.optim.RMSprop(parameters, lr=0.0, **options)
        case "adam":
            return torch.optim.Adam(parameters, lr=0.0, betas=tuple(settings.betas), eps=settings.eps)
        case "adamw":
            options = {"betas": tuple(settings.betas), "eps": settings.eps, "weight_decay": 0.0}
            return torch.optim.AdamW(parameters, lr=0.0, **options)
