"""The files beside the weights: config.json, and what generating text or preparing images needs."""

from pathlib import Path
from typing import Any

from configs.recipe import Recipe
from configs.sections.data_section import ImageData
from configs.sections.model_section import GptModel, ResnetModel
from data.atomic import to_json
from data.text.tokenizer import open_tokenizer
from trainer.huggingface.tensor_map import Architecture
from trainer.tasks.classification import DEFAULT_MEAN, DEFAULT_STD

__all__ = ["tokenizer_path"]


_SHORT_SIDE = 256 / 224  # before the centre crop, as data.images.crops.centre_crop
_BILINEAR = 2  # Pillow's number of it
_ROPE_KEYS = ("rope_theta", "rope_type", "partial_rotary_factor")


def config_json(recipe: Recipe, target: Architecture, dtype: str) -> dict[str, Any]:
    """config.json for transformers 4 and 5, which name precision and rotation differently."""
    config = {
        # transformers 5 reads `dtype` and `rope_parameters`, 4 reads `torch_dtype` and the keys of the rotation.
        "architectures": [target.class_name],
        "model_type": target.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        **{key: value for key, value in target.config.items() if key != "rope_type"},
    }
    if "rope_type" in target.config:
        config["rope_parameters"] = {key: target.config[key] for key in _ROPE_KEYS}
    if isinstance(recipe.model, GptModel):
        return {**config, **_dropout(recipe.model, target), "initializer_range": recipe.model.init_std, **_ids(recipe)}
    assert isinstance(recipe.model, ResnetModel), "`architecture` refuses others"
    labels = {str(i): f"LABEL_{i}" for i in range(recipe.model.classes)}
    return {**config, "id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}


def auxiliary_files(recipe: Recipe) -> dict[str, bytes]:
    """By file name: what stands beside weights and config.json.

    Of a tokenizer.json that is not where the recipe says, there is nothing to write.
    """
    if isinstance(recipe.data, ImageData):
        return {"preprocessor_config.json": to_json(_preprocessor(recipe.data))} if recipe.data.channels == 3 else {}
    files = {"generation_config.json": to_json(_ids(recipe))}
    path = tokenizer_path(recipe)
    if path is None or not path.exists():
        return files
    tokenizer = open_tokenizer(str(path))
    # transformers wants the text of the token here, not its id.
    end = tokenizer.decode([tokenizer.end_of_document])
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": end}
    if isinstance(recipe.model, GptModel):
        settings["model_max_length"] = recipe.model.context
    return {**files, "tokenizer.json": path.read_bytes(), "tokenizer_config.json": to_json(settings)}


def tokenizer_path(recipe: Recipe) -> Path | None:
    """The tokenizer.json of the recipe, if it names one."""
    if recipe.data.kind != "text" or recipe.data.tokenizer == "bytes":
        return None
    return Path(recipe.data.tokenizer)


def _dropout(model: GptModel, target: Architecture) -> dict[str, float]:
    if target.model_type == "gpt2":
        return dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), model.dropout)
    return {"attention_dropout": model.dropout}


def _ids(recipe: Recipe) -> dict[str, int | None]:
    """Rows begin and end at the same token, as our samples do; without one, null: not the class's own default."""
    end = _end_of_document(recipe)
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}


def _end_of_document(recipe: Recipe) -> int | None:
    path = tokenizer_path(recipe)
    if recipe.data.kind != "text" or (path is not None and not path.exists()):
        return None
    return open_tokenizer(recipe.data.tokenizer).end_of_document


def _preprocessor(data: ImageData) -> dict[str, Any]:
    """As validation prepares images that are not of the right size yet."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(data.size * _SHORT_SIDE)},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": data.size, "width": data.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": data.mean or DEFAULT_MEAN[data.channels],
        "image_std": data.std or DEFAULT_STD[data.channels],
    }
