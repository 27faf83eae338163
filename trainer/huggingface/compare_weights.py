"""Whether stored weights are those of an architecture: every difference with what was found and what was expected."""

from dataclasses import dataclass
from typing import Any

from configs.errors import RecipeError
from trainer.huggingface.stored_weights import StoredWeights
from trainer.huggingface.tensor_map import Architecture, TensorMapping

_FLOATS = ("F64", "F32", "F16", "BF16")
# Constants that some versions of transformers stored with the weights.
_CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", ".num_batches_tracked")
_SAME_ACTIVATION = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "swish": "silu"}
_ROPE_DEFAULTS = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}
_HEAD = "lm_head.weight"
_MOST_LISTED = 20


@dataclass(frozen=True)
class MatchedWeights:
    """Stored name -> mapping; and stored heads that must equal the embedding, as the recipe ties them."""

    mappings: dict[str, TensorMapping]
    copies_of_embedding: list[str]


def match_weights(stored: StoredWeights, wanted: Architecture) -> MatchedWeights:
    """Raises RecipeError naming each difference; those of tensors only when the configurations agree."""
    problems = [] if stored.config is None else _config_problems(stored.config, wanted)
    found = {name: mapping for mapping in wanted.mappings if (name := _name_of(mapping, stored, wanted)) is not None}
    spare = [name for name in stored.tensors if name not in found and not name.endswith(_CONSTANTS)]
    # Some files hold a tied head once more: whether it equals the embedding shows when values are read.
    copies = [name for name in spare if name == _HEAD and "tie_word_embeddings" in wanted.config]
    # Tensors of another configuration differ by the hundred: they would hide the one key that says why.
    if not problems:
        problems = _tensor_problems(stored, wanted, found)
        problems += [f"tensor {name}: found, not expected" for name in spare if name not in copies]
    if problems:
        more = [f"… and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
        lines = "\n".join(["", *problems[:_MOST_LISTED], *more])
        raise RecipeError(f"model.init_from: {stored.path} does not hold this recipe's {wanted.class_name}:{lines}")
    return MatchedWeights(found, copies)


def _name_of(mapping: TensorMapping, stored: StoredWeights, wanted: Architecture) -> str | None:
    """A model saved without its head has no prefix, as openai-community/gpt2."""
    for name in (mapping.theirs, mapping.theirs.removeprefix(wanted.base_prefix)):
        if name in stored.tensors:
            return name
    return None


def _tensor_problems(stored: StoredWeights, wanted: Architecture, found: dict[str, TensorMapping]) -> list[str]:
    problems = []
    for name, mapping in found.items():
        info = stored.tensors[name][1]
        if info.shape != mapping.shape:
            problems.append(f"tensor {name}: found shape {info.shape}, expected {mapping.shape}")
        elif info.dtype not in _FLOATS and not mapping.is_count:
            problems.append(f"tensor {name}: found {info.dtype}, expected one of {', '.join(_FLOATS)}")
    # What our model does without (`ours` None) may be absent: it counts as zero then.
    present = {mapping.theirs for mapping in found.values()}
    absent = [mapping for mapping in wanted.mappings if mapping.theirs not in present and mapping.ours is not None]
    return problems + [f"tensor {mapping.theirs}: not found, expected shape {mapping.shape}" for mapping in absent]


def _config_problems(config: dict[str, Any], wanted: Architecture) -> list[str]:
    if config.get("model_type") != wanted.model_type:
        return [f"model_type: found {config.get('model_type', 'none')}, expected {wanted.model_type}"]
    found = _effective(config, wanted)
    problems = []
    for key, expected in wanted.config.items():
        if key == "max_position_embeddings":  # shorter rows rotate alike
            if found[key] < expected:
                problems.append(f"{key}: found {found[key]}, expected {expected} (model.context) or more")
        elif found.get(key) != expected:
            problems.append(f"{key}: found {found.get(key, 'none')}, expected {expected}")
    return problems


def _effective(config: dict[str, Any], wanted: Architecture) -> dict[str, Any]:
    """Every key as transformers understands the file: defaults filled in, old and new names of the rotation alike."""
    given = {key: value for key, value in config.items() if value is not None}
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
    found = {"max_position_embeddings": 0, **_ROPE_DEFAULTS, **wanted.defaults, **given, **rope}
    for key in ("hidden_act", "activation_function"):
        if key in found:
            found[key] = _SAME_ACTIVATION.get(found[key], found[key])
    # Defaults that transformers works out from other keys, in the class's own __init__.
    if "hidden_size" in found and "num_attention_heads" in found:
        found.setdefault("num_key_value_heads", found["num_attention_heads"])
        found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    if "n_embd" in found:
        found.setdefault("n_inner", 4 * found["n_embd"])
    return found
