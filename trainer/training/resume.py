"""Where a run goes on: what each checkpoint says of its place in the run, and the way back from it."""

import time
from dataclasses import asdict
from importlib.metadata import version

from cluster.run.run_events import Resumed
from configs.compare import differences, result_keys, result_sha256
from configs.errors import RunFolderError
from configs.recipe import Recipe
from trainer.checkpoint.manifest import Manifest, check_same_data
from trainer.checkpoint.reader import check_model, open_newest, restore
from trainer.checkpoint.store_protocol import CheckpointStore
from trainer.engine.engine_protocol import Engine
from trainer.rank.context import Context
from trainer.training.lr_schedule import learning_rate


def header(context: Context, engine: Engine, data_sha256: str, step: int, targets: int) -> Manifest:
    """All of the manifest that is known before the state is copied.

    Order, packing, mixture and random draws follow from `samples`, the recipe and the data alone.
    """
    recipe = context.recipe
    return Manifest(
        step=step,
        samples=step * recipe.batch.global_,
        targets=targets,
        attempt=context.attempt,
        workers=context.ranks.world,
        engine=engine.name,
        zero_stage=recipe.zero.stage,
        recipe=result_keys(recipe),
        recipe_sha256=result_sha256(recipe),
        data_sha256=data_sha256,
        versions={name: version(name) for name in ("torch", "deepspeed", "stoker")},
        parameters={name: list(shape) for name, shape in engine.parameter_shapes().items()},
        schedule={
            "step": step,
            "steps": recipe.run.steps,
            "lr": learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.run.steps),
        },
        scalars=asdict(engine.scalars()),
    )


def resume(context: Context, engine: Engine, store: CheckpointStore, data_sha256: str) -> Manifest | None:
    """Load the newest valid checkpoint; what it says of itself, None for a fresh start.

    Raises DataError, RunFolderError or CheckpointError, on every rank and before any changed its state, when the
    checkpoint is of other data, another recipe or another model.
    """

    def accept(manifest: Manifest) -> None:
        check_same_data(manifest, data_sha256, f"checkpoint step {manifest.step}")
        check_same_recipe(manifest, context.recipe)
        check_model(engine, manifest)

    started = time.monotonic()
    reader = open_newest(store, context.ranks, engine.extents, accept, context.warn)
    if reader is None:
        return None
    with reader:
        restore(engine, reader)
    found = reader.manifest
    context.record_once(Resumed(step=found.step, seconds=time.monotonic() - started, bytes=found.total_bytes))
    return found


def check_same_recipe(manifest: Manifest, recipe: Recipe) -> None:
    """Raises RunFolderError with the differences when the recipe has another result than the checkpoint's."""
    found = differences(manifest.recipe, recipe)
    if found:
        raise RunFolderError(
            f"checkpoint step {manifest.step} was made by a recipe with another result ({'; '.join(found)}): "
            "give back that recipe, or start a new run with another run.name"
        )
