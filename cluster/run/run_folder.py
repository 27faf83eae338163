"""The run folder: one owner for every path in it."""

from dataclasses import dataclass
from pathlib import Path

from configs.recipe import Recipe

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Nothing here touches the disk except `make` and the listings."""

    root: Path

    @classmethod
    def of(cls, recipe: Recipe) -> "RunFolder":
        """Where a recipe puts its run."""
        return cls((Path(recipe.run.dir) / recipe.run.name).absolute())

    @property
    def recipe(self) -> Path:
        """As it was resolved: every default written out."""
        return self.root / "recipe.yaml"

    @property
    def ledger(self) -> Path:
        """What happened, one event a line (ledger.py)."""
        return self.root / "ledger.jsonl"

    @property
    def code(self) -> Path:
        """Files of the user's own that the recipe names, as they were when a command started, by their hash."""
        return self.root / "code"

    @property
    def index(self) -> Path:
        """What is known of shards that are far away, so that not every host has to read them all for it."""
        return self.root / "index"

    @property
    def metrics(self) -> Path:
        """One line per logged step of the committed history."""
        return self.root / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """Where the running attempt is: replaced about twice a second by rank 0."""
        return self.root / "progress.json"

    @property
    def stop_request(self) -> Path:
        """Exists while the driver asks the workers to leave at the next step boundary."""
        return self.root / ".stop"

    @property
    def checkpoints(self) -> Path:
        """Of the checkpoints, unless checkpoint.dir says otherwise; and always of the receipts of a save."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Of event files, a folder per attempt."""
        return self.root / "tensorboard"

    def audit(self, attempt: int, rank: int) -> Path:
        """Which samples each step of an attempt had on a rank, where the recipe asks for it."""
        return self.root / "audit" / f"attempt-{attempt}-rank-{rank}.jsonl"

    @property
    def logs(self) -> Path:
        """Of everything that has no terminal."""
        return self.root / "logs"

    @property
    def session_log(self) -> Path:
        """What the process that holds Ray says."""
        return self.logs / "session.log"

    @property
    def slurm(self) -> Path:
        """What a Slurm job needs, and what it says."""
        return self.root / "slurm"

    @property
    def lock(self) -> Path:
        """Held while a `stoker train` runs here."""
        return self.root / ".lock"

    def log(self, attempt: int, rank: int) -> Path:
        """What a rank of an attempt printed, native libraries too."""
        return self.logs / f"attempt-{attempt}" / f"rank-{rank}.log"

    def superseded(self, attempt: int) -> Path:
        """Metrics lines of lost work, put aside when this attempt began."""
        return self.logs / f"attempt-{attempt}" / "superseded.jsonl"

    def all_superseded(self) -> list[Path]:
        """Of all attempts, oldest path first."""
        return sorted(self.logs.glob("attempt-*/superseded.jsonl"))

    def make(self) -> None:
        """The folders that others write into."""
        for folder in (self.checkpoints, self.tensorboard, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
