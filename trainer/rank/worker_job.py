"""What a training process imports; here, so that the driver can name it without importing it."""

import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from configs.sections.model_section import accepts_code_change

__all__ = ["WORKER_MODULES", "WorkerJob"]


WORKER_MODULES = ["trainer.training.worker", "deepspeed"]


@dataclass(frozen=True)
class WorkerJob:
    """What the driver tells its workers; plain data, so that any launcher can carry it."""

    recipe: dict[str, Any]
    run_folder: str
    working_folder: str  # relative paths of the recipe resolve against it
    invocation: str
    started: float
    stop_at: int | None = None
    chaos: list[str] = field(default_factory=list)
    code_changed: bool = False

    @classmethod
    def of(cls, recipe: Recipe, folder: RunFolder, stop_at: int | None, chaos: list[str]) -> "WorkerJob":
        """A new invocation, from here and now."""
        data, changed = recipe.model_dump(mode="json", by_alias=True), accepts_code_change(recipe.model)
        return cls(data, str(folder.root), str(Path.cwd()), uuid.uuid4().hex, time.time(), stop_at, chaos, changed)

    def encode(self) -> dict[str, Any]:
        """As `main` of the worker takes it."""
        return asdict(self)
