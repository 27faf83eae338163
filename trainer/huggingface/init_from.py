"""`model.init_from`: weights of a Hugging Face model as the initial state of a run."""

import hashlib
import time
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open

from cluster.run.run_events import Initialised
from configs.errors import DataError, ExportError, RecipeError
from configs.recipe import Recipe
from configs.sections.data_section import ImageData
from data.text.tokenizer import vocab_size
from trainer.huggingface.architecture import architecture
from trainer.huggingface.compare_weights import MatchedWeights, match_weights
from trainer.huggingface.stored_weights import StoredWeights, open_weights
from trainer.huggingface.tensor_map import TensorMapping
from trainer.rank.context import Context

__all__ = ["check_initial_weights", "load_initial_weights"]


def check_initial_weights(recipe: Recipe) -> None:
    """Raises RecipeError, before anything starts, where model.init_from does not fit the recipe; reads headers only."""
    if recipe.model.init_from is not None:
        _matched(recipe, recipe.model.init_from)


def load_initial_weights(context: Context, module: torch.nn.Module) -> None:
    """Fill `module` (fp32, on the host) from model.init_from, if the recipe has it, one tensor at a time.

    Called on every rank at a fresh start. The files' sha256 go to the ledger. Raises RecipeError where they do not
    fit, DataError where the ranks read different weights.
    """
    recipe, ranks = context.recipe, context.ranks
    if recipe.model.init_from is None:
        return
    started = time.monotonic()
    stored, found = _matched(recipe, recipe.model.init_from)
    copy_weights(module, stored, found)
    # Collective, on every rank: each has read its own copy of the files, and data parallelism takes equal weights for
    # granted. DeepSpeed would broadcast rank 0's without a word.
    if len(set(ranks.gather(_digest(module)))) > 1:
        raise DataError(f"model.init_from: the workers read different weights from {stored.path}: copy it to all nodes")
    # Files by turns: hashing all of a large model on every rank would take minutes.
    own_share = {file.name: _sha256(file) for file in stored.files[ranks.rank :: ranks.world]}
    sha256 = {name: value for share in ranks.gather(own_share) for name, value in share.items()}
    seconds = time.monotonic() - started
    context.record_once(Initialised(path=str(stored.path.absolute()), sha256=sha256, seconds=seconds))


def _matched(recipe: Recipe, path: str) -> tuple[StoredWeights, MatchedWeights]:
    try:
        wanted = architecture(recipe.model, _inputs(recipe))
    except ExportError as error:
        raise RecipeError(f"model.init_from: {error}") from error
    stored = open_weights(Path(path))
    return stored, match_weights(stored, wanted)


def _inputs(recipe: Recipe) -> int:
    """Vocabulary of a Gpt, channels of a Resnet."""
    if isinstance(recipe.data, ImageData):
        return recipe.data.channels
    return getattr(recipe.model, "vocab", None) or vocab_size(recipe)


@torch.no_grad()
def copy_weights(module: torch.nn.Module, stored: StoredWeights, found: MatchedWeights) -> None:
    """Copy each matched tensor to its place. Raises RecipeError where one is not zero that ours does without."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for file in stored.files:
        with safe_open(file, framework="pt") as tensors:
            for name, mapping in found.mappings.items():
                if stored.tensors[name][0] == file:
                    _copy_one(own, mapping, tensors.get_tensor(name), stored.path)
    for name in found.copies_of_embedding:
        with safe_open(stored.tensors[name][0], framework="pt") as tensors:
            if not torch.equal(tensors.get_tensor(name).float(), own["model.embed.weight"]):
                problem = f"{name} in {stored.path} differs from the embedding"
                raise RecipeError(f"model.init_from: {problem}: set model.tie_embeddings=false")


def _copy_one(own: dict[str, torch.Tensor], mapping: TensorMapping, values: torch.Tensor, path: Path) -> None:
    if mapping.ours is not None:
        start, stop = mapping.elements
        own[mapping.ours].view(-1)[start:stop].view(mapping.own_shape).copy_(values.T if mapping.transposed else values)
    elif not mapping.is_count and values.any():
        raise RecipeError(f"model.init_from: {mapping.theirs} in {path} is not zero, and model.bias is false")


def _digest(module: torch.nn.Module) -> str:
    digest = xxhash.xxh3_128()
    for tensor in module.state_dict().values():
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
