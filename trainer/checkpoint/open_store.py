"""Which store a run's checkpoints are in."""

import os
from pathlib import Path

from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from trainer.checkpoint.folder_store import FolderStore
from trainer.checkpoint.store_protocol import CheckpointStore

__all__ = ["WORKER_RETRY_S", "checkpoint_store", "local_root", "store_at"]


_SCHEMES = ("s3://", "gs://", "az://")
WORKER_RETRY_S = 120.0  # of workers, with a store that does not answer; twice that is less than a hang


def local_root(folder: RunFolder, recipe: Recipe) -> Path | None:
    """The folder that holds this run's checkpoints; None for an object store."""
    given = recipe.checkpoint.dir
    if given is None:
        return folder.checkpoints
    return None if given.startswith(_SCHEMES) else (Path(given) / recipe.run.name).absolute()


def checkpoint_store(folder: RunFolder, recipe: Recipe, retry_s: float = 0.0) -> CheckpointStore:
    """`checkpoints/` of the run folder, or what `checkpoint.dir` says with the run's name added."""
    local = local_root(folder, recipe)
    where = str(local) if local is not None else f"{str(recipe.checkpoint.dir).rstrip('/')}/{recipe.run.name}"
    return store_at(where, retry_s)


def store_at(where: str, retry_s: float = 0.0) -> CheckpointStore:
    """The store in the folder or at the URL `where`. Raises RunFolderError for a URL that cannot be used.

    `retry_s`: how long a store that does not answer is asked again; 0 where somebody waits.
    """
    if not where.startswith(_SCHEMES):
        return FolderStore(Path(where))
    from trainer.checkpoint.object_store import ObjectCheckpointStore, open_object_store  # takes a moment to import

    return ObjectCheckpointStore(open_object_store(where, os.environ), where, retry_s)
