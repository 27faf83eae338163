"""Which store a run's checkpoints are in."""

import os
from pathlib import Path

from configs.recipe import Recipe
from trainer.checkpoint_store import CheckpointStore
from trainer.folder_store import FolderStore
from trainer.run_folder import RunFolder


def checkpoint_store(folder: RunFolder, recipe: Recipe) -> CheckpointStore:
    """`checkpoints/` of the run folder, or what `checkpoint.dir` says with the run's name added."""
    place = recipe.checkpoint.dir
    if place is None:
        return FolderStore(folder.checkpoints)
    if place.startswith(("s3://", "gs://", "az://")):
        from trainer.object_store import ObjectCheckpointStore, open_object_store  # takes a moment to import

        where = f"{place.rstrip('/')}/{recipe.run.name}"
        return ObjectCheckpointStore(open_object_store(where, os.environ), where)
    return FolderStore((Path(place) / recipe.run.name).absolute())
