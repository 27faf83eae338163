"""Train, save, load under another layout, go on: the engine and the checkpoint alone, without the loop around them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.recipe import Recipe
from tests.support.processes import run_in_processes

SAVED_AFTER = 4  # steps
GOES_ON = 20  # steps more


@dataclass(frozen=True)
class Layout:
    """A ZeRO stage on a number of workers."""

    stage: int
    workers: int

    @property
    def name(self) -> str:
        return f"zero{self.stage}x{self.workers}"


@dataclass(frozen=True)
class Leg:
    """Load from `source` (None: start from scratch), save to `target` at once or after SAVED_AFTER steps, go on."""

    recipe: Recipe
    source: Path | None
    target: Path


@dataclass(frozen=True)
class Trained:
    """Of one leg: what was saved, and every step after it. Equal on all ranks."""

    digests: dict[str, str]
    scalars: dict[str, Any]
    losses: list[float]
    scales: list[tuple[float, bool]]
    keys: list[list[str]]


def run_legs(legs: Sequence[Leg], workers: int, store: Path) -> list[Trained]:
    """All legs, in one group of processes."""
    results: list[list[Trained]] = run_in_processes(_run_legs, workers, store, list(legs))
    assert all(result == results[0] for result in results)
    return results[0]


def _run_legs(legs: list[Leg]) -> list[Trained]:
    os.nice(10)  # up to four processes that never wait, beside tests with a clock
    return [_run_leg(leg) for leg in legs]


def _run_leg(leg: Leg) -> Trained:
    from cluster.run.ledger import Ledger
    from cluster.run.run_folder import RunFolder
    from trainer.checkpoint.folder_store import FolderStore
    from trainer.checkpoint.reader import CheckpointReader, open_newest, restore, verify
    from trainer.checkpoint.writer import CheckpointWriter
    from trainer.engine.deepspeed_engine import DeepSpeedEngine
    from trainer.rank.context import Context
    from trainer.rank.ranks import Ranks
    from trainer.tasks.build_task import build_task
    from trainer.training.resume import header

    ranks, folder = Ranks.connect(), RunFolder(leg.target)
    folder.make()
    context = Context(leg.recipe, folder, Ledger(folder.ledger), ranks, 1, "")
    engine = DeepSpeedEngine(build_task(leg.recipe), context)
    if leg.source is None:
        _train(engine, leg.recipe, ranks, 0, SAVED_AFTER)
    else:
        store = FolderStore(leg.source / "checkpoints")
        reader = open_newest(store, ranks, engine.extents, lambda manifest: None, lambda problem: None)
        assert reader is not None
        with reader:
            restore(engine, reader)
    store = FolderStore(folder.checkpoints)
    problems: list[str] = []
    writer = CheckpointWriter(
        store,
        folder.checkpoints,
        ranks,
        leg.recipe.checkpoint,
        superseded=lambda: False,
        published=lambda manifest, stall, seconds: None,
        warn=problems.append,
    )
    writer.save(engine, header(context, engine, "", SAVED_AFTER, 0))
    losses, scales, keys = _train(engine, leg.recipe, ranks, SAVED_AFTER, GOES_ON)  # while it is written
    problem = writer.wait()
    assert problem is None, problem
    ranks.sum([0.0])
    with CheckpointReader(store.at(SAVED_AFTER), verify(store.at(SAVED_AFTER))) as saved:
        digests, scalars = saved.digests(), saved.manifest.scalars
    engine.close()
    return Trained(digests, scalars, losses, scales, keys)


def _train(
    engine: Any, recipe: Recipe, ranks: Any, first: int, count: int
) -> tuple[list[float], list[tuple[float, bool]], list[list[str]]]:
    from data.batch import step_slices
    from data.dataset import open_dataset, read_micro_batch
    from trainer.training.lr_schedule import learning_rate

    data = open_dataset(recipe, "train")
    losses, scales, keys = [], [], []
    for step in range(first + 1, first + count + 1):
        slices = step_slices(step, recipe.batch, ranks.rank, ranks.world)
        batches = [read_micro_batch(data, step, piece, recipe.batch.micro) for piece in slices]
        weight = ranks.sum([sum(batch.targets for batch in batches)])[0]
        lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.run.steps)
        result = engine.train_step(batches, step, weight, lr)
        losses.append(ranks.sum([float(result.loss_sum)])[0] / weight)
        scales.append((result.loss_scale, result.skipped))
        own = [key for batch in batches for key in batch.keys]
        keys.append(sorted(key for each in ranks.gather(own) for key in each))
    data.close()
    return losses, scales, keys
