"""What a finished run is worth, in a few lines."""

from cluster.run.ledger import Ledger, read_json_lines
from cluster.run.run_events import Validated
from cluster.run.run_folder import RunFolder
from configs.errors import CheckpointError, DataError, RunFolderError
from configs.recipe import Recipe
from configs.sections.model_section import UserModel
from data.dataset import open_dataset, unigram_entropy
from trainer.checkpoint.open_store import checkpoint_store
from trainer.checkpoint.store_protocol import list_steps


def summarize(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Final figures, a generated sample if the task makes one, and where to look next."""
    lines = read_json_lines(folder.metrics)
    last = next((line for line in reversed(lines) if "loss" in line), None)  # a left-out step has none
    loss = f", train loss {last['loss']:.4f}" if last else ""
    summary = [f"finished: step {lines[-1]['step'] if lines else recipe.run.steps}{loss}"]
    validated = [line for line in lines if "val_loss" in line]
    if validated:
        summary.append(validation_line(recipe, validated[-1]))
    samples = [e.sample for e in Ledger(folder.ledger).events() if isinstance(e, Validated) and e.sample]
    if samples:
        summary += ["the model writes:", *(f"  | {line}" for line in samples[-1].splitlines())]
    newest = _newest_checkpoint(recipe, folder)
    return [*summary, f"checkpoint: {newest}", f"next: stoker status {folder.root}   stoker board {folder.root}"]


def _newest_checkpoint(recipe: Recipe, folder: RunFolder) -> str:
    """It was there when the run finished."""
    try:
        store = checkpoint_store(folder, recipe)
        steps = list_steps(store)
    except (CheckpointError, RunFolderError) as error:
        return f"unknown now, {error}"
    return store.at(steps[-1]).where if steps else f"none is in {store.where} now"


def validation_line(recipe: Recipe, line: dict[str, float]) -> str:
    """The figures of one validation, and what to compare a loss per token with."""
    text = f"validation at step {line['step']}: loss {line['val_loss']:.4f}"
    if isinstance(recipe.model, UserModel):  # whose metrics are its own
        named = {name.removeprefix("val_"): value for name, value in line.items() if name.startswith("val_")}
        return ", ".join([text, *(f"{name} {value:.4f}" for name, value in named.items() if name != "loss")])
    if "val_accuracy" in line:
        return f"{text}, accuracy {line['val_accuracy']:.2%}"
    perplexity = f", perplexity {line['val_perplexity']:.2f}" if "val_perplexity" in line else ""
    return f"{text} nats/token{perplexity}{_beside(recipe)}"


def _beside(recipe: Recipe) -> str:
    """What to compare the loss with. The run is finished, whatever can be read of its data now."""
    if recipe.data.val is None or recipe.validation is None:  # removed since
        return ""
    try:
        entropy = unigram_entropy(open_dataset(recipe, "val"), recipe.validation.max_samples)
    except DataError as error:
        return f" (unigram entropy of the data: unknown, {error})"
    return f" (unigram entropy of the data: {entropy:.4f})"
