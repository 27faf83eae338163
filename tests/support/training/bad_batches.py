"""Data and initial weights that make chosen global batches bad, and no other: real numbers, and no hook in the trainer.

Every document holds a token that no other has, and the run starts from weights in which a few of those are poisoned.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from data.batch import step_slices
from data.dataset import open_dataset, read_micro_batch
from data.pack.shard_writer import write_shard
from tests.support.ledger_events import event
from tests.support.training.runs import recipe_of

DOCUMENTS, TOKENS, VOCAB = 120, 17, 140  # a document fills a row of 16 inputs, and is used once in 10 steps
CAUSES = {4: "loss", 6: "gradient", 8: "spike"}  # by step
GPT2: dict[str, Any] = {"kind": "gpt", "layers": 1, "heads": 2, "width": 32, "context": 16, "dropout": 0.1}
GPT2 |= {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True, "tie_embeddings": False}


def write_bad_batches(folder: Path, causes: dict[int, str] = CAUSES, *, fp16: bool = False) -> None:
    """One shard, and initial weights with which the steps of `causes` are bad. Without `gradient` also for `fp16`."""
    documents = np.random.default_rng(7).integers(DOCUMENTS, VOCAB, (DOCUMENTS, TOKENS), np.uint16)
    documents[:, 8] = np.arange(DOCUMENTS)
    samples = []
    for number, document in enumerate(documents):
        array = io.BytesIO()
        np.save(array, document)
        samples.append((f"d{number}", {"npy": array.getvalue()}))
    write_shard(folder / "train-000000.tar", samples)
    places = {cause: keys_of(bad_recipe(folder, "layout"), step)[5] for step, cause in causes.items()}
    _write_weights(
        folder / "weights.safetensors",
        {cause: int(key.removeprefix("d").partition("[")[0]) for cause, key in places.items()},
        fp16=fp16,
    )


def _write_weights(path: Path, poisoned: dict[str, int], *, fp16: bool) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2, n_positions=16, tie_word_embeddings=False)
    weights = {name: tensor.clone() for name, tensor in GPT2LMHeadModel(config).state_dict().items()}
    for name, factor in (("wte", 5e-3), ("wpe", 5e-3), ("c_attn", 50.0), ("c_fc", 50.0), ("c_proj", 0.05)):
        for key in weights:
            weights[key] *= factor if key.endswith(f"{name}.weight") else 1.0
    # Features 0 and 1 of the last norm are about 1 for every token: some are never predicted, at whatever price.
    weights["transformer.ln_f.weight"][:2], weights["transformer.ln_f.bias"][:2] = 0.1, 1.0
    if fp16:  # the price itself overflows
        weights["lm_head.weight"][poisoned["loss"]] = 0.0
        weights["lm_head.weight"][poisoned["loss"], :2] = -6e4
    else:  # the mean of such a vector overflows, and with it all that follows
        weights["transformer.wte.weight"][poisoned["loss"]] = 3e38
    # With the first the loss is a number, but not its gradient: the norms of so small vectors have derivatives of 300.
    for cause, price in (("gradient", -1e38), ("spike", -1e4)):
        if cause in poisoned:
            weights["lm_head.weight"][poisoned[cause]] = 0.0
            weights["lm_head.weight"][poisoned[cause], 0] = price
    save_file(weights, path)


def bad_recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    """10 steps with a checkpoint after 3, 6, 9; a spike is told by five losses."""
    defaults: dict[str, Any] = {
        "data": {
            "kind": "tokens",
            "vocab": VOCAB,
            "packing": "best_fit",
            "train": {"shards": str(folder / "train-*.tar")},
        },
        "optimizer": {"kind": "adamw", "lr": 1e-5},
        "checkpoint": {"every_steps": 3, "keep_last": 9},
        "validation": None,
        "bad_numbers": {"policy": "rollback", "spike": {"window_steps": 5, "z": 10.0}},
    }
    return recipe_of(
        folder, {**GPT2, "init_from": str(folder / "weights.safetensors")}, name, **{**defaults, **sections}
    )


def keys_of(recipe: Recipe, step: int) -> list[str]:
    """The samples of a global batch, in order."""
    data = open_dataset(recipe, "train")
    try:
        slices = step_slices(step, recipe.batch, 0, 1)
        return [key for part in slices for key in read_micro_batch(data, step, part, recipe.batch.micro).keys]
    finally:
        data.close()


def leave_out_from_the_start(recipe: Recipe, *steps: int) -> None:
    """As if a former attempt had found them."""
    folder = RunFolder.of(recipe)
    folder.make()
    for step in steps:
        line = {"step": step, "message": "told by the test", "left_out": True}
        Ledger(folder.ledger).append(event("bad_number", **line))
