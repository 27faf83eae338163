"""What a finished run is worth, in a few lines."""

from configs.recipe import Recipe
from data.dataset import open_dataset, unigram_entropy
from trainer.checkpoint_place import checkpoint_store
from trainer.ledger import read_json_lines
from trainer.run_folder import RunFolder


def summarize(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Final figures, a generated sample if the task makes one, and where to look next."""
    lines = read_json_lines(folder.metrics)
    last = next((line for line in reversed(lines) if "loss" in line), None)  # a left-out step has none
    loss = f", train loss {last['loss']:.4f}" if last else ""
    summary = [f"finished: step {lines[-1]['step']}{loss}"]
    validated = [line for line in lines if "val_loss" in line]
    if validated:
        summary.append(_validation(recipe, validated[-1]))
    samples = [e["sample"] for e in read_json_lines(folder.ledger) if e["event"] == "validated" and e.get("sample")]
    if samples:
        summary += ["the model writes:", *(f"  | {line}" for line in samples[-1].splitlines())]
    store = checkpoint_store(folder, recipe)
    newest = store.at(store.steps()[-1]).where
    return [*summary, f"checkpoint: {newest}", f"next: stoker status {folder.root}   stoker board {folder.root}"]


def _validation(recipe: Recipe, line: dict[str, float]) -> str:
    text = f"validation at step {line['step']}: loss {line['val_loss']:.4f}"
    if "val_accuracy" in line:
        return f"{text}, accuracy {line['val_accuracy']:.2%}"
    entropy = unigram_entropy(open_dataset(recipe, "val"))
    return f"{text} nats/token, perplexity {line['val_perplexity']:.2f} (unigram entropy of the data: {entropy:.4f})"
