"""A checkpoint as a folder that Hugging Face `transformers` loads, written one tensor at a time."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.errors import ExportError
from configs.recipe import Recipe
from configs.sections.model_section import GptModel, UserModel
from data.atomic import sync_folder, to_json, write_durably
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.reader import CheckpointReader
from trainer.checkpoint.safetensors_file import DTYPE_BYTES, TensorInfo, write_tensors
from trainer.checkpoint.store_protocol import CheckpointFolder
from trainer.engine.ema import EMA_BUFFER_PREFIX, EMA_KIND
from trainer.huggingface.architecture import architecture
from trainer.huggingface.config_files import auxiliary_files, config_json
from trainer.huggingface.tensor_map import Architecture, TensorMapping, own_shapes

__all__ = ["DTYPES", "ExportOptions", "export"]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
SHARD_BYTES = 5_000_000_000  # default of ExportOptions; beyond, several files: as transformers did for years
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ExportOptions:
    """What to write: which weights, in which precision, in files of at most how many bytes (but one tensor)."""

    dtype: torch.dtype = torch.float32
    ema: bool = False
    shard_bytes: int = SHARD_BYTES


def export(
    recipe: Recipe, folder: CheckpointFolder, manifest: Manifest, out: Path, options: ExportOptions
) -> list[Path]:
    """Write `out`, whole or not at all, from the verified checkpoint in `folder`; the files in it.

    Raises ExportError: `out` exists or cannot be written, the checkpoint has no average, no class of theirs fits, a
    weight is beyond half precision.
    """
    target = architecture(recipe.model, _inputs(recipe, manifest))
    _check_parameters(target, manifest, options)
    with _published_folder(out) as staging, CheckpointReader(folder, manifest) as reader:
        shards = _plan_shards(target.mappings, options)
        buffers = reader.buffers()
        for name, mappings in shards.items():
            plan = {mapping.theirs: _info(mapping, options) for mapping in mappings}
            # A generator: one tensor is in memory at a time, whatever the model's size.
            contents = (_bytes(_read(mapping, reader, buffers, options), mapping) for mapping in mappings)
            write_tensors(staging / name, plan, contents, _metadata(manifest, options))
        if len(shards) > 1:
            _write_index(staging, shards, options)
        write_durably(
            staging / "config.json", to_json(config_json(recipe, target, str(options.dtype).removeprefix("torch.")))
        )
        for name, content in auxiliary_files(recipe).items():
            write_durably(staging / name, content)
    return sorted(out.iterdir())


def _inputs(recipe: Recipe, manifest: Manifest) -> int:
    """Vocabulary or channels, from the stored shapes: without opening the data."""
    if isinstance(recipe.model, GptModel):
        return manifest.parameters["model.embed.weight"][0]
    if isinstance(recipe.model, UserModel):
        return 0  # `architecture` refuses it
    return manifest.parameters["model.conv1.weight"][1]


def _check_parameters(target: Architecture, manifest: Manifest, options: ExportOptions) -> None:
    wanted = own_shapes(tuple(mapping for mapping in target.mappings if not mapping.is_buffer))
    stored = {name: tuple(shape) for name, shape in manifest.parameters.items()}
    if wanted != stored:
        differing = sorted(name for name in wanted | stored if wanted.get(name) != stored.get(name))
        raise ExportError(
            f"the checkpoint of step {manifest.step} does not hold the model of recipe.yaml: {differing[0]} is "
            f"{stored.get(differing[0], 'absent')} there, {wanted.get(differing[0], 'absent')} by the recipe"
        )
    if options.ema and not any(fragment.kind == EMA_KIND for fragment in manifest.fragments):
        raise ExportError(
            f"the checkpoint of step {manifest.step} has no averaged weights: "
            "leave out --ema, or train with the section ema in the recipe"
        )


def _plan_shards(mappings: tuple[TensorMapping, ...], options: ExportOptions) -> dict[str, list[TensorMapping]]:
    """Files in order, each full but for the next tensor; wide types first, so that every tensor is aligned."""
    ordered = sorted(mappings, key=lambda mapping: -DTYPE_BYTES[_info(mapping, options).dtype])
    files: list[list[TensorMapping]] = [[]]
    size = 0
    for mapping in ordered:
        added = _info(mapping, options).bytes
        if size + added > options.shard_bytes and files[-1]:
            files.append([])
            size = 0
        files[-1].append(mapping)
        size += added
    if len(files) == 1:
        return {_WEIGHTS: files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": part for i, part in enumerate(files, 1)}


def _info(mapping: TensorMapping, options: ExportOptions) -> TensorInfo:
    return TensorInfo(SAFETENSORS_NAMES[_dtype(mapping, options)], mapping.shape)


def _dtype(mapping: TensorMapping, options: ExportOptions) -> torch.dtype:
    if mapping.is_count:
        return torch.int64
    # Running statistics stay fp32, as in training: a variance may be beyond half precision.
    return torch.float32 if mapping.is_buffer else options.dtype


def _read(
    mapping: TensorMapping, reader: CheckpointReader, buffers: dict[str, torch.Tensor], options: ExportOptions
) -> torch.Tensor:
    dtype = _dtype(mapping, options)
    if mapping.ours is None:
        return torch.zeros(mapping.shape, dtype=dtype)
    if mapping.is_buffer:
        return buffers[EMA_BUFFER_PREFIX + mapping.ours if options.ema else mapping.ours].to(dtype)
    read = reader.read(EMA_KIND if options.ema else "master", mapping.ours)
    if read is None:
        raise ExportError(f"the checkpoint has no weights of {mapping.ours}: it was made by another model")
    values = read(*mapping.elements).view(mapping.own_shape)
    # Stored rows are ours (outputs, inputs); GPT-2's own layers keep the transpose.
    cast = (values.T if mapping.transposed else values).to(dtype)
    if dtype == torch.float16 and cast.isinf().any() and not values.isinf().any():
        raise ExportError(
            f"{mapping.ours} has a weight of {values.abs().max():.3g}, beyond fp16's 65504: use --dtype bf16"
        )
    return cast


def _bytes(tensor: torch.Tensor, mapping: TensorMapping) -> memoryview:
    if tuple(tensor.shape) != mapping.shape:
        raise ExportError(f"{mapping.ours} has shape {tuple(tensor.shape)}, {mapping.theirs} needs {mapping.shape}")
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _metadata(manifest: Manifest, options: ExportOptions) -> dict[str, str]:
    return {
        "format": "pt",  # transformers refuses files without it
        "stoker.step": str(manifest.step),
        "stoker.weights": "ema" if options.ema else "last",
        "stoker.recipe_sha256": manifest.recipe_sha256,
    }


def _write_index(staging: Path, shards: dict[str, list[TensorMapping]], options: ExportOptions) -> None:
    total = sum(_info(mapping, options).bytes for mappings in shards.values() for mapping in mappings)
    places = {mapping.theirs: name for name, mappings in shards.items() for mapping in mappings}
    write_durably(staging / _INDEX, to_json({"metadata": {"total_size": total}, "weight_map": places}))


@contextmanager
def _published_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well, and is removed when not."""
    if out.exists() or out.is_symlink():
        raise ExportError(f"{out} exists: give a folder that does not, or remove it")
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        # The folder's names before its own: after a power cut `out` is whole or absent.
        sync_folder(staging)
        staging.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
