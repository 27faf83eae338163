"""What can be known before anything starts, and the checks that `stoker plan` and `stoker train` share."""

from collections.abc import Callable
from typing import TypeVar

from cluster.hosts.resources import available_cpus, available_gpus, check_disk, check_resources, check_writable
from cluster.run.ledger import Ledger
from cluster.run.run_events import CheckpointPublished
from cluster.run.run_folder import RunFolder
from configs.compare import result_differences
from configs.effect import check_keep_best, without_effect
from configs.errors import CheckpointError, DataError, ResourceError, RunFolderError
from configs.load import load_recipe
from configs.recipe import Recipe
from configs.sections.model_section import UserModel
from data.dataset import open_dataset
from trainer.checkpoint.manifest import check_same_data
from trainer.checkpoint.open_store import checkpoint_store, local_root
from trainer.checkpoint.store_protocol import CheckpointStore, read_manifest
from trainer.huggingface.init_from import check_initial_weights
from trainer.launch.memory_estimate import DTYPES, FP32_BYTES, estimate
from trainer.tasks.build_task import check_task

__all__ = ["describe", "memory_rows", "preflight", "preflight_elsewhere"]


T = TypeVar("T")
_ZERO_3 = 3


def describe(recipe: Recipe) -> list[str]:
    """Batch arithmetic and model figures, one line each."""
    figures, batch, workers = estimate(recipe), recipe.batch, recipe.workers.most
    kept, need = kept_checkpoints(recipe, recipe.run.steps), readable(disk_bytes(recipe, recipe.run.steps))
    rounds = batch.accumulation(workers)
    empty = rounds * workers - batch.micro_batches
    gaps = f", {empty} of them empty (weight zero)" if empty else ""
    unit, is_own = figures.unit, isinstance(recipe.model, UserModel)
    return [
        f"batch: {batch.global_} samples per step = {batch.micro_batches} micro-batches of {batch.micro}; "
        f"{workers} workers × {rounds} accumulation rounds = {rounds * workers} micro-batches{gaps}",
        f"run: {recipe.run.steps:,} steps × {figures.targets_per_step:,} {unit}s = "
        f"{recipe.run.steps * figures.targets_per_step:,}, {recipe.run.steps * figures.flops_per_step:.3g} FLOPs",
        f"model: {figures.parameters:,} parameters, {figures.flops_per_target:.4g} FLOPs per {unit} (both passes)",
        f"checkpoint: {readable(figures.checkpoint_bytes)} each; {kept} kept in the end and one in work need {need}",
        *(["memory: the activations of a model of your own are not estimated"] if is_own else []),
        *_whole_at_start(recipe, figures.parameters),
    ]


def _whole_at_start(recipe: Recipe, parameters: int) -> list[str]:
    """What the memory table, which is of training, does not show."""
    if recipe.zero.stage != _ZERO_3:
        return []
    on_device, on_host = parameters * DTYPES[recipe.precision].itemsize, parameters * FP32_BYTES
    return [
        f"start: each worker holds the whole model before it is sharded, {readable(on_host)} in host memory, then "
        f"{readable(on_device)} where it computes: it must fit there once"
    ]


def readable(size_bytes: float) -> str:
    """In the largest unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} GiB"


def kept_checkpoints(recipe: Recipe, step: int) -> int:
    """The most that are there at `step`: the last, the best, and those that are kept for good."""
    settings = recipe.checkpoint
    for_good = step // settings.keep_every_steps if settings.keep_every_steps else 0
    best = settings.keep_best.count if settings.keep_best else 0
    return min(settings.keep_last + best + for_good, -(-recipe.run.steps // settings.every_steps))


def disk_bytes(recipe: Recipe, step: int) -> int:
    """For the checkpoints that are kept at `step` and the one being written."""
    return estimate(recipe).checkpoint_bytes * (kept_checkpoints(recipe, step) + 1)


def check_space(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Raises ResourceError when there is no room for a run's first checkpoints; says when there is none for the last.

    Those that are kept for good may be moved away while it runs.
    """
    place = local_root(RunFolder.of(recipe), recipe)
    if place is None:
        return
    check_disk(place, disk_bytes(recipe, 0))
    try:
        check_disk(place, disk_bytes(recipe, recipe.run.steps))
    except ResourceError as error:
        say(f"warning: by the end of the run, {error}")


def memory_rows(recipe: Recipe) -> list[list[str]]:
    """A table of estimated memory per worker, header first; the recipe's stage has a star."""
    rows = [["ZeRO", "weights", "gradients", "optimizer", "activations", "device", "offloaded"]]
    for memory in estimate(recipe).memory:
        mark = " *" if memory.stage == recipe.zero.stage else ""
        sizes = (
            memory.weights_bytes,
            memory.gradients_bytes,
            memory.optimizer_bytes,
            memory.activations_bytes,
            memory.device_bytes,
            memory.offloaded_bytes,
        )
        rows.append([f"{memory.stage}{mark}", *map(readable, sizes)])
    return rows


def preflight(recipe: Recipe, say: Callable[[str], None], *, elsewhere: bool = False) -> None:
    """Everything that must be so before a run may start. Raises the UserError of the first thing that is not.

    `elsewhere`: the workers run on a cluster, which has its own cpus and gpus.
    """
    folder = RunFolder.of(recipe)
    check_keep_best(recipe)
    if not elsewhere:
        check_resources(recipe.workers, cpus=available_cpus(), gpus=available_gpus())
    store = checkpoint_store(folder, recipe)
    fresh = not naming_place(store, store.steps)
    if fresh:
        check_none_left(folder, store)
    check_resumable(recipe, folder, store)
    check_task(recipe)
    if fresh:  # a resumed run does not read them
        check_initial_weights(recipe)
    check_data_of_run(store, check_data(recipe, say))
    if fresh:  # or most of the space is in use already, by this very run
        check_space(recipe, say)
    for line in without_effect(recipe):
        say(f"warning: {line}")


def preflight_elsewhere(recipe: Recipe, say: Callable[[str], None]) -> bool:
    """For a recipe that needs gpus where there are none: tell what is missing here; True when it was such a recipe."""
    if not recipe.workers.gpus or available_gpus():
        return False
    check_keep_best(recipe)
    say(f"this machine has no gpus, the recipe wants {recipe.workers.count}: it is planned for another machine")
    try:
        check_data(recipe, say)
        check_space(recipe, say)
    except (DataError, ResourceError) as error:
        say(f"not ready on this machine: {error}")
    return True


def check_resumable(recipe: Recipe, folder: RunFolder, store: CheckpointStore) -> None:
    """Raises RunFolderError with the differences when the folder holds a run of a recipe with another result."""
    if not folder.recipe.exists() or not naming_place(store, store.steps):
        return
    differences = result_differences(load_recipe(folder.recipe), recipe)
    if any(each.startswith("model.code_sha256") for each in differences):
        raise RunFolderError(
            f"{folder.root} holds a run of another version of {recipe.model.kind.rpartition(':')[0]}, kept in "
            f"{folder.code}: undo the change, start a new run with another run.name, or go on with it by --code-changed"
        )
    if differences:
        raise RunFolderError(
            f"{folder.root} holds a run of another recipe ({'; '.join(differences)}): "
            "undo the change, or start a new run with another run.name"
        )


def check_places(recipe: Recipe) -> None:
    """Raises RunFolderError when the run folder, or the place of the checkpoints, cannot be written."""
    folder = RunFolder.of(recipe)
    check_writable(folder.root)
    store = checkpoint_store(folder, recipe)
    naming_place(store, store.probe)


def naming_place(store: CheckpointStore, act: Callable[[], T]) -> T:
    """`act()`, its OSError as a RunFolderError that names the place."""
    try:
        return act()
    except OSError as error:
        cause = (error.strerror or str(error) or type(error).__name__).splitlines()[0][:300]
        raise RunFolderError(
            f"checkpoints cannot be kept in {store.where} ({cause}): see that it is there and may be read and written, "
            "or change checkpoint.dir"
        ) from error


def check_none_left(folder: RunFolder, store: CheckpointStore) -> None:
    """Raises RunFolderError when the run has saved checkpoints, which are not in `store`: it would start over."""
    saved = [event.step for event in Ledger(folder.ledger).events() if isinstance(event, CheckpointPublished)]
    if saved and not store.damaged():
        raise RunFolderError(
            f"run {folder.root} has saved step {saved[-1]}, but there is no checkpoint in {store.where}: set "
            "checkpoint.dir to where they are or move them there; to start over, use another run.name or remove "
            f"{folder.root}"
        )


def check_data_of_run(store: CheckpointStore, data_sha256: str) -> None:
    """Raises DataError when the run so far was trained on other shards. Damage is the workers' to find and mend."""
    steps = store.steps()
    if not steps:
        return
    try:
        manifest = read_manifest(store.at(steps[-1]))
    except CheckpointError:
        return
    check_same_data(manifest, data_sha256, f"the run in {store.where}")


def check_data(recipe: Recipe, say: Callable[[str], None]) -> str:
    """Index the shards, check that every sample has its parts, say what is there; the fingerprint of the train split.

    Raises DataError.
    """
    fingerprint = ""
    unit = "images" if recipe.data.kind == "image" else "rows"
    splits = [("train", recipe.data.train), ("val", recipe.data.val)]
    for split in [name for name, shards in splits if shards is not None]:
        dataset = open_dataset(recipe, "train" if split == "train" else "val", say)
        size = dataset.size
        say(
            f"{split} data: {size.shards} shards, {size.samples:,} samples, {size.bytes / 1e6:,.1f} MB, "
            f"{dataset.count:,} {unit} per epoch"
        )
        fingerprint = fingerprint or dataset.fingerprint
        dataset.close()
    return fingerprint
