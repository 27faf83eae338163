"""Whether a task keeps what equal runs need: tried in this process, on the host, with the first samples of the data."""

import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import UserCodeError
from configs.reading.user_code import describe, line_of_frame
from configs.recipe import Recipe
from data.dataset import Dataset, open_dataset
from trainer.models.norm import BatchNorm2d
from trainer.tasks.build_task import build_task
from trainer.tasks.task_protocol import EngineTask

__all__ = ["check_promises"]


_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.01}  # of sums that were added up in another order
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HOST_GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, np.random.BitGenerator)
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Promise:
    """`problem`: empty where it is kept."""

    what: str
    problem: str = ""


def check_promises(recipe: Recipe) -> list[Promise]:
    """In an order in which a broken one may explain the next. Raises RecipeError, DataError and UserCodeError."""
    dataset = open_dataset(recipe, "train")
    try:
        whole, halves, targets = _batches(dataset, recipe)
    finally:
        dataset.close()
    before = _host_states()
    with _lines_that_draw_outside_torch() as lines:
        task, again = build_task(recipe), build_task(recipe)
        for each in (task, again):
            each.module.to(_DTYPES[recipe.precision])
        repeated = _losses(task.module, [whole, halves[0], whole])
    return [
        Promise("the initial weights follow from run.seed", _differing_weights(task, again)),
        Promise("every draw comes from torch's generator", _outside_draws(before, lines)),
        Promise("the loss is a finite number", "" if all(map(math.isfinite, repeated)) else f"it is {repeated[0]}"),
        Promise("no state goes from one micro-batch to the next", _kept_state(task.module, again.module, repeated)),
        Promise(
            "loss, weight and metrics are sums over the micro-batch",
            _not_sums(task.module, whole, halves, _TOLERANCE[recipe.precision]),
        ),
        Promise("the weight is the number of targets", _wrong_weight(task.module, whole, targets)),
        Promise("every parameter is trained, or frozen by requires_grad", _untrained(task.module, whole)),
    ]


def _batches(dataset: Dataset, recipe: Recipe) -> tuple[Batch, list[Batch], int]:
    """The first samples as one micro-batch and as its halves, and how many targets they have."""
    half = max(2, recipe.batch.micro // 2)  # of one sample some layers make no statistics

    def read(start: int, stop: int) -> tuple[Batch, int]:
        rows = dataset.read(start, stop, stop - start)
        return {name: torch.from_numpy(array) for name, array in rows.arrays.items()}, rows.targets

    whole, targets = read(0, 2 * half)
    return whole, [read(0, half)[0], read(half, 2 * half)[0]], targets


def _sums(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(0)  # as the engine does, by the micro-batch's position
    try:
        sums: dict[str, Tensor] = module(**batch)
    except UserCodeError:
        raise
    except Exception as error:
        raise UserCodeError(describe(error)) from error
    return sums


def _losses(module: nn.Module, batches: list[Batch]) -> list[float]:
    module.train()
    return [float(_sums(module, batch)["loss"].detach()) for batch in batches]


def _differing_weights(task: EngineTask, again: EngineTask) -> str:
    other = dict(again.module.named_parameters())
    names = [name for name, p in task.module.named_parameters() if not torch.equal(p.detach(), other[name].detach())]
    return f"{names[0]} differs between two builds" if names else ""


def _kept_state(used: nn.Module, fresh: nn.Module, losses: list[float]) -> str:
    own = {f"{name}." for name, child in used.named_modules() if isinstance(child, BatchNorm2d)}
    untouched = dict(fresh.named_buffers())
    changed = [
        name
        for name, buffer in used.named_buffers()
        if not torch.equal(buffer, untouched[name]) and not name.startswith(tuple(own))
    ]
    if changed:
        return f"buffer {changed[0]} changes in a forward: for batch normalisation use trainer.models.norm.BatchNorm2d"
    if math.isfinite(losses[0]) and losses[0] != losses[2]:
        return f"the loss of one micro-batch is {losses[0]:.9g}, and {losses[2]:.9g} when another one came in between"
    return ""


def _not_sums(module: nn.Module, whole: Batch, halves: list[Batch], tolerance: float) -> str:
    """Without dropout: its draws depend on how a batch is cut."""
    module.eval()
    with torch.no_grad():
        one, parts = _sums(module, whole), [_sums(module, half) for half in halves]
    for name, value in one.items():
        together = sum(float(part[name]) for part in parts)
        if abs(float(value) - together) > tolerance * max(abs(together), 1.0):
            rest = " + ".join(f"{float(part[name]):.6g}" for part in parts)
            return f'"{name}" is {float(value):.6g} for a micro-batch, and {rest} for its halves: is it a mean?'
    return ""


def _wrong_weight(module: nn.Module, whole: Batch, targets: int) -> str:
    with torch.no_grad():
        weight = float(_sums(module, whole)["weight"])
    return "" if weight == targets else f'"weight" is {weight:g}, and the micro-batch has {targets} targets'


def _untrained(module: nn.Module, whole: Batch) -> str:
    module.train()
    module.zero_grad()
    _sums(module, whole)["loss"].backward()  # type: ignore[no-untyped-call]
    names = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    return f"{names[0]} gets no gradient: use it, or freeze it by requires_grad_(False)" if names else ""


@contextmanager
def _lines_that_draw_outside_torch() -> Iterator[list[str]]:
    """Lines of the user's file that draw from Python's or NumPy's generators while this is open."""
    lines: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and isinstance(getattr(argument, "__self__", None), _HOST_GENERATORS):
            line = line_of_frame(frame)
            if line is not None and line not in lines:
                lines.append(line)

    before: Callable[..., Any] | None = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield lines
    finally:
        sys.setprofile(before)


def _host_states() -> tuple[object, str]:
    """Of the global generators of Python and NumPy."""
    return random.getstate(), repr(np.random.get_state())


def _outside_draws(before: tuple[object, str], lines: list[str]) -> str:
    if lines:
        return f"Python's or NumPy's generator is drawn from ({lines[0]}): use torch's"
    return "" if _host_states() == before else "NumPy's generator is drawn from: use torch's"
