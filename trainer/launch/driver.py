"""`stoker train` on the driver: check everything, start the workers, watch them, tell how it ended."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.hosts.resources import available_cpus, available_gpus, cpus_of_workers, fitting_workers
from cluster.processes.stop_signals import StopSignals
from cluster.run.events import Event
from cluster.run.ledger import Ledger
from cluster.run.run_events import (
    AttemptStarted,
    CommandEnded,
    CommandStarted,
    FailureNotCounted,
    Fault,
    Finished,
    Resumed,
    Warned,
)
from cluster.run.run_folder import RunFolder
from cluster.run.run_lock import RunLock, is_held
from cluster.session.session_main import SessionPlan
from cluster.session.session_restarts import Failure, run_sessions
from cluster.session.workplace import Workplace
from cluster.workers.failure_count import MOST_LOST_HOSTS
from cluster.workers.worker_shell import ShellOrder
from configs.errors import EXIT_DONE, EXIT_FAILED, CheckpointError, RecipeError, RunFolderError
from configs.load import dump_recipe
from configs.reading.user_code import UserCode
from configs.recipe import Recipe
from configs.sections.model_section import UserModel
from data.atomic import write_durably
from data.index import sidecar
from trainer.checkpoint.open_store import checkpoint_store
from trainer.checkpoint.reader import verify
from trainer.checkpoint.store_protocol import CheckpointStore
from trainer.engine.deepspeed_engine import collective_backend
from trainer.history.verdict import verdict
from trainer.launch.final_summary import summarize
from trainer.launch.preflight import check_places, check_resumable, naming_place, preflight
from trainer.rank.worker_job import WORKER_MODULES, WorkerJob
from trainer.terminal import ProgressView, fail, say

__all__ = ["train"]


@dataclass
class RunWatcher:
    """Reads what the workers leave in the run folder, and passes the user's wish to stop on to them."""

    folder: RunFolder
    ledger: Ledger
    signals: StopSignals
    view: ProgressView
    since: float
    seen: int = 0
    asked: bool = False

    def poll(self) -> None:
        """Called a few times a second while the workers run."""
        events = self.ledger.events()
        for event in events[self.seen :]:
            if event.time >= self.since and (line := _news(event)):
                say(line)
        self.seen = len(events)
        progress = _read_progress(self.folder.progress)
        if progress and progress["time"] >= self.since:
            self.view.show(progress)
        if self.signals.requested and not self.asked:
            self.asked = True
            self.folder.stop_request.touch()
            say(f"{self.signals.requested}: saving a checkpoint at the next step boundary, then leaving")


def train(recipe: Recipe, stop_at: int | None, place: Workplace, address: str | None, chaos: list[str]) -> int:
    """Run to the end, or until something stops it. Returns the exit code; raises StokerError for what never started."""
    folder = RunFolder.of(recipe)
    if (why := _nothing_to_do(recipe, folder, stop_at)) is not None:  # whatever has become of its data
        say(why)
        return EXIT_DONE
    sidecar.share_in(folder.index)
    preflight(recipe, say, elsewhere=address is not None)
    check_places(recipe)
    with RunLock(folder.root):
        try:
            folder.make()
            _keep_code(recipe, folder)
            write_durably(folder.recipe, dump_recipe(recipe).encode())
            folder.stop_request.unlink(missing_ok=True)
            sidecar.publish()
        except OSError as error:
            raise RunFolderError(f"run folder {folder.root} cannot be written: {error.strerror}") from error
        return _run(recipe, folder, WorkerJob.of(recipe, folder, stop_at, chaos), place, address)


def _keep_code(recipe: Recipe, folder: RunFolder) -> None:
    """Copy the user's file that the recipe names: every worker runs this copy. Raises RecipeError when it changed."""
    if not isinstance(recipe.model, UserModel):
        return
    code, sha256 = UserCode.of(recipe.model.kind), recipe.model.code_sha256
    if sha256 is None or code.sha256() != sha256:
        raise RecipeError(f"model.kind: {code.path} is not the file that model.code_sha256 names: remove that key")
    copy = code.copy_in(folder.code, sha256)
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_durably(copy, code.read())


def _nothing_to_do(recipe: Recipe, folder: RunFolder, stop_at: int | None) -> str | None:
    """Why no worker need be started, or None. Raises RunFolderError when that is not for this recipe to say."""
    if not folder.recipe.exists() or is_held(folder.root):
        return None
    store = checkpoint_store(folder, recipe)
    check_resumable(recipe, folder, store)
    steps = naming_place(store, store.steps)
    if recipe.run.steps in steps and _is_whole(store, recipe.run.steps):
        _finish(recipe, folder)
        return f"run {folder.root} is finished at step {recipe.run.steps}: nothing to do"
    if stop_at is not None and steps and steps[-1] >= stop_at and _is_whole(store, steps[-1]):
        return f"run {folder.root} is at step {steps[-1]}, and --stop-at is {stop_at}: nothing to do"
    return None


def _is_whole(store: CheckpointStore, step: int) -> bool:
    """Else the workers will find it, tell, and go back to the one before."""
    try:
        verify(store.at(step))
    except CheckpointError:
        return False
    return True


def _finish(recipe: Recipe, folder: RunFolder) -> None:
    """Tell what the run is worth; a kill right after its last checkpoint may have kept the ledger from the end."""
    ledger = Ledger(folder.ledger)
    if not any(isinstance(event, Finished) for event in ledger.events()):
        ledger.append(Finished(step=recipe.run.steps, reason="found published"))
    for line in summarize(recipe, folder):
        say(line)


def _run(recipe: Recipe, folder: RunFolder, job: WorkerJob, place: Workplace, address: str | None) -> int:
    ledger = Ledger(folder.ledger)
    began = psutil.Process().create_time()
    ledger.append(CommandStarted(started=began, invocation=job.invocation, workers=recipe.workers.count))
    with StopSignals() as signals, ProgressView() as view:
        watch = RunWatcher(folder, ledger, signals, view, job.started, seen=len(ledger.events()))
        try:
            failure = run_sessions(_plan(recipe, folder, job, place, address), folder, watch, say)
        finally:
            folder.stop_request.unlink(missing_ok=True)
        watch.poll()
    return _report_end(recipe, folder, ledger, job.invocation, failure)


def _plan(recipe: Recipe, folder: RunFolder, job: WorkerJob, place: Workplace, address: str | None) -> SessionPlan:
    workers = recipe.workers
    order = ShellOrder(
        run=job.invocation,
        target="trainer.training.worker:main",
        config=job.encode(),
        modules=WORKER_MODULES,
        backend=collective_backend(workers.gpus),
        cpus=workers.threads,
        fresh=workers.gpus > 0,
        working_folder=job.working_folder,
        server_host=place.host,
        server_path=str(place.fork_server),
        run_folder=str(folder.root),
        invocation=job.invocation,
    )
    count = workers.most if address else fitting_workers(workers, cpus=available_cpus(), gpus=available_gpus())
    return SessionPlan(
        order=order.encode(),
        workers=workers.model_dump(mode="json"),
        name=recipe.run.name,
        folder=str(place.folder),
        cpus=cpus_of_workers(count, workers.cpus),
        gpus=count * workers.gpus,
        address=address,
    )


def _report_end(recipe: Recipe, folder: RunFolder, ledger: Ledger, invocation: str, failure: Failure | None) -> int:
    message, code = (failure.message, failure.exit_code) if failure else (None, EXIT_FAILED)
    ended = verdict(ledger.events(), failure=message, exit_code=code)
    ledger.append(CommandEnded(invocation=invocation, failure=message, exit_code=ended.exit_code))
    if ended.what == "finished":
        for line in summarize(recipe, folder):
            say(line)
    else:
        tell = say if ended.what == "stopped" else fail
        tell(ended.line())
    return ended.exit_code


def _news(event: Event) -> str | None:
    """The events that a user wants to read as they happen."""
    match event:
        case Warned():
            return f"warning: {event.message}"
        case Resumed():
            return f"attempt {event.attempt}: resumed from the checkpoint of step {event.step}"
        case AttemptStarted() if (event.attempt or 0) > 1:
            return f"attempt {event.attempt} started with {event.workers} workers"
        case Fault() if not event.final and event.rank is not None:
            return f"fault on rank {event.rank}: {event.kind}: {event.message}"
        case FailureNotCounted():
            hosts, nth = ", ".join(event.hosts), f"{event.in_a_row} of {MOST_LOST_HOSTS} in a row"
            return f"host {hosts} is lost or about to go: this costs no workers.max_failures ({nth})"
        case _:
            return None


def _read_progress(path: Path) -> dict[str, Any] | None:
    try:
        progress: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not there yet, or emptied by a power cut
        return None
    return progress
