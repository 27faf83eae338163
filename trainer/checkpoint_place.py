"""Which store a run's checkpoints are in."""

from pathlib import Path

from configs.recipe import Recipe
from trainer.checkpoint_store import CheckpointStore
from trainer.folder_store import FolderStore
from trainer.run_folder import RunFolder


def checkpoint_store(folder: RunFolder, recipe: Recipe) -> CheckpointStore:
    """`checkpoints/` of the run folder, or what `checkpoint.dir` says. Touches nothing."""
    place = recipe.checkpoint.dir
    if place is None:
        return FolderStore(folder.checkpoints)
    return FolderStore((Path(place) / recipe.run.name).absolute())
