"""Tiny models on both sides: recipes for each of Hugging Face's classes, and our model from a checkpoint's bytes."""

from pathlib import Path
from typing import Any

import torch

from configs.recipe import Recipe
from tests.support.training.runs import recipe_of, run_folder_of
from trainer.checkpoint.folder_store import LocalCheckpoint
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.reader import CheckpointReader
from trainer.checkpoint.store_protocol import read_manifest
from trainer.tasks.build_task import build_task

_GPT: dict[str, Any] = {"kind": "gpt", "layers": 2, "heads": 4, "width": 32, "context": 16}
_GPT2 = {**_GPT, "positions": "learned", "norm": "layernorm", "activation": "gelu"}
GPTS: dict[str, dict[str, Any]] = {
    "llama": {**_GPT, "kv_heads": 2, "rope_base": 5000.0},
    "llama-biased": {**_GPT, "bias": True, "tie_embeddings": False, "mlp_width": 48},
    "gpt2": {**_GPT2, "bias": True},
    "gpt2-unbiased": {**_GPT2, "tie_embeddings": False},
    "arcee": {**_GPT, "activation": "gelu", "bias": True},
    "starcoder2": {**_GPT, "norm": "layernorm", "activation": "gelu", "bias": True, "kv_heads": 2},
    "stablelm": {**_GPT, "norm": "layernorm", "kv_heads": 1},
}
RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"kind": "resnet", "depth": 18, "classes": 3, "width": 4, "zero_init_residual": False},
    "resnet50": {"kind": "resnet", "depth": 50, "classes": 3, "width": 4, "zero_init_residual": False},
}


def gpt_recipe(folder: Path, kind: str, **sections: Any) -> Recipe:
    model = {**GPTS[kind], **sections.pop("model", {})}
    return recipe_of(folder, model, sections.pop("run_name", kind), **{"validation": None, **sections})


def resnet_recipe(folder: Path, kind: str, **sections: Any) -> Recipe:
    """On 64×64 images of three channels, so that batch normalisation sees several values in the last stage."""
    model = {**RESNETS[kind], **sections.pop("model", {})}
    shards = {split: {"shards": str(folder / f"{split}-*.tar")} for split in ("train", "val")}
    data = {"kind": "image", "size": 64, "channels": 3, **shards}
    return recipe_of(folder, model, sections.pop("run_name", kind), **{"data": data, "validation": None, **sections})


def checkpoint_of(recipe: Recipe, step: int) -> tuple[LocalCheckpoint, Manifest]:
    folder = LocalCheckpoint(run_folder_of(recipe) / "checkpoints" / f"step-{step:08d}")
    return folder, read_manifest(folder)


@torch.no_grad()
def stored_model(recipe: Recipe, step: int, *, ema: bool = False) -> torch.nn.Module:
    """Our model with the weights of a checkpoint, in evaluation mode."""
    module = build_task(recipe).module
    with CheckpointReader(*checkpoint_of(recipe, step)) as reader:
        for name, parameter in module.named_parameters():
            read = reader.read("ema" if ema else "master", name)
            assert read is not None
            parameter.copy_(read(0, parameter.numel()).view(parameter.shape))
        stored = reader.buffers()
        for name, buffer in module.named_buffers():
            buffer.copy_(stored["ema/" + name if ema else name])
    return module.eval()
