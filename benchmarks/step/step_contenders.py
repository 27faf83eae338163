"""The three loops that benchmarks/step/__main__.py compares, as they run in one of its worker processes."""

import gc
import json
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.setting import (
    CONTEXT_TOKENS,
    DEEPSPEED_CONFIG,
    MICRO_BATCHES,
    MICRO_ROWS,
    STEP_TOKENS,
    WARM_UP_STEPS,
    WORKERS,
    recipe_of,
)
from benchmarks.step.profile_spans import Profile
from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from trainer.metrics.reporter import Reporter
from trainer.rank.ranks import Ranks
from trainer.rank.worker_job import WorkerJob
from trainer.tasks.build_task import build_task
from trainer.tasks.task_protocol import parameter_groups
from trainer.training.worker import main as run_worker

STOKER, DEEPSPEED, DDP = "Stoker", "DeepSpeed", "PyTorch DDP"
LOOPS = (STOKER, DEEPSPEED, DDP)


@dataclass(frozen=True)
class MeasuredSteps:
    """`steps` measured steps of one loop, on rank 0."""

    loop: str
    steps: int
    wall_s: float
    cpu_s: float  # of this process, all threads
    spans_s: dict[str, float]

    @property
    def tokens_per_s(self) -> float:
        """Of all workers together."""
        return STEP_TOKENS * self.steps / self.wall_s


class StepClock:
    """Wall, processor and span time between `start` and `stop`."""

    def __init__(self) -> None:
        self.profile = Profile()
        self._wall_s, self._cpu_s = 0.0, 0.0
        self.spans_s: dict[str, float] = {}

    def start(self) -> None:
        """The first measured step begins."""
        self.profile.reset()
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """The last measured step has ended; the time outside of all spans is `rest`."""
        self._wall_s, self._cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        spans_s = dict(self.profile.seconds)
        self.spans_s = {**spans_s, "rest": self._wall_s - sum(spans_s.values())}

    def measured(self, loop: str, steps: int, wall_s: float | None = None) -> MeasuredSteps:
        """What was timed between `start` and `stop`; `wall_s` where the loop's own clock is better."""
        return MeasuredSteps(loop, steps, wall_s or self._wall_s, self._cpu_s, self.spans_s)


def worker_process(rank: int, folder: Path, rounds: int, steps: int, out: Connection) -> None:
    """Sends (round, MeasuredSteps) for each loop from rank 0, then None; or the traceback as text."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORKERS), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORKERS)
    try:
        for index, found in _measured_steps(folder, rounds, steps):
            if rank == 0:
                out.send((index, found))
        out.send(None)
    except Exception:
        out.send(f"rank {rank}:\n{traceback.format_exc()}")
    finally:
        dist.destroy_process_group()


def _measured_steps(folder: Path, rounds: int, steps: int) -> Iterator[tuple[int, MeasuredSteps]]:
    """The loops in turn, in another order each round, so that a drift of the machine favours none."""
    clock = StepClock()
    _time_calls(clock)
    run: dict[str, Callable[[Recipe, StepClock, int], MeasuredSteps]]
    run = {STOKER: _stoker, DEEPSPEED: _deepspeed, DDP: _ddp}
    for index in range(rounds):
        first = index % len(LOOPS)
        for loop in LOOPS[first:] + LOOPS[:first]:
            recipe = recipe_of(folder, f"round-{index}", WARM_UP_STEPS + steps)
            dist.barrier()
            yield index, run[loop](recipe, clock, steps)
            gc.collect()


def _time_calls(clock: StepClock) -> None:
    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine

    from trainer.engine.deepspeed_engine import DeepSpeedEngine as StokerEngine

    # It serves inference only, takes a minute to compile, and Stoker does without it too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    profile = clock.profile
    for method in ("forward", "backward", "step"):
        profile.time_calls(DeepSpeedEngine, method, method)
    profile.time_calls(StokerEngine, "train_step", "around the engine")
    profile.time_calls(Ranks, "sum", "agreement")
    for method in ("stepped", "phase"):
        profile.time_calls(Reporter, method, "reporting")
    log_if_due = Reporter.log_if_due

    def log_and_mark(reporter: Reporter, step: int) -> None:
        with profile.span("reporting"):
            log_if_due(reporter, step)
        if step == WARM_UP_STEPS:
            clock.start()
        if step == reporter._recipe.run.steps:
            clock.stop()

    setattr(Reporter, "log_if_due", log_and_mark)  # noqa: B010


def _stoker(recipe: Recipe, clock: StepClock, steps: int) -> MeasuredSteps:
    """Shards, logging and all; the time is that of its own lines in metrics.jsonl."""
    folder = RunFolder.of(recipe)
    if dist.get_rank() == 0:
        folder.make()
    dist.barrier()
    invocation = [uuid.uuid4().hex]
    dist.broadcast_object_list(invocation, src=0)
    data = recipe.model_dump(mode="json", by_alias=True)
    run_worker(WorkerJob(data, str(folder.root), str(Path.cwd()), invocation[0], time.time()).encode())
    dist.barrier()
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    times = {line["step"]: line["time"] for line in lines}
    wait_s = sum(line["data_wait_s"] for line in lines if line["step"] > WARM_UP_STEPS)
    clock.spans_s |= {"data wait": wait_s, "rest": clock.spans_s["rest"] - wait_s}
    return clock.measured(STOKER, steps, times[recipe.run.steps] - times[WARM_UP_STEPS])


class MeanLoss(nn.Module):
    """The model of the recipe with the usual loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return F.cross_entropy(self.model(tokens_BT).flatten(0, 1), targets_BT.flatten())


def _model_and_batch(recipe: Recipe) -> tuple[MeanLoss, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    """The same model and optimizer, and one step's batch held in memory."""
    task: Any = build_task(recipe)
    module = MeanLoss(task.module.model)
    groups = parameter_groups(module, recipe.optimizer)
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups],
        lr=1e-3,
        betas=(0.9, 0.95),
        fused=True,
    )
    rows_NBT = torch.randint(256, (MICRO_BATCHES, MICRO_ROWS, CONTEXT_TOKENS + 1))
    return module, optimizer, [(rows_BT[:, :-1].contiguous(), rows_BT[:, 1:].contiguous()) for rows_BT in rows_NBT]


def _measure(step: Callable[[], Tensor], clock: StepClock, steps: int) -> None:
    """Warm up, then `steps` steps up to the value of the last loss."""
    for _ in range(WARM_UP_STEPS):
        step()
    dist.barrier()
    clock.start()
    for _ in range(steps):
        loss = step()
    loss.item()
    dist.barrier()
    clock.stop()


def _deepspeed(recipe: Recipe, clock: StepClock, steps: int) -> MeasuredSteps:
    import deepspeed

    module, optimizer, batches = _model_and_batch(recipe)
    config = {**DEEPSPEED_CONFIG, "steps_per_print": 10**9}
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)

    def step() -> Tensor:
        for tokens_BT, targets_BT in batches:
            loss: Tensor = engine(tokens_BT, targets_BT)
            engine.backward(loss)
            engine.step()
        return loss.detach()

    _measure(step, clock, steps)
    engine.destroy()
    return clock.measured(DEEPSPEED, steps)


def _ddp(recipe: Recipe, clock: StepClock, steps: int) -> MeasuredSteps:
    module, optimizer, batches = _model_and_batch(recipe)
    model = nn.parallel.DistributedDataParallel(module)
    span = clock.profile.span

    def step() -> Tensor:
        for index, (tokens_BT, targets_BT) in enumerate(batches):
            with nullcontext() if index == len(batches) - 1 else model.no_sync():
                with span("forward"):
                    loss: Tensor = model(tokens_BT, targets_BT) / len(batches)
                with span("backward"):
                    torch.autograd.backward(loss)
        with span("step"):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    _measure(step, clock, steps)
    return clock.measured(DDP, steps)
