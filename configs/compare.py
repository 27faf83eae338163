"""Which keys decide a run's result, and how two recipes differ in them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from configs.recipe import Recipe
from configs.sections.model_section import OWN, UserModel, accepts_code_change

__all__ = ["differences", "result_differences", "result_keys", "result_sha256"]


# Where and how a run is executed; by promise 1 none of these changes what is computed (beyond float rounding).
# bad_numbers may change so that a run that a bad number stopped can go on; what it left out stays left out. So may
# loss_scale.max_skipped_steps.
_FREE_SECTIONS = ("workers", "checkpoint", "validation", "monitor", "zero", "bad_numbers", "slurm", "cloud")
# The shards may move: the fingerprint of their contents, which is compared as well, stays the same.
_FREE_KEYS = (
    *("run.dir", "run.name", "data.train.shards", "data.val.shards", "data.val", "model.checkpoint_activations"),
    *("data.on_error", "data.max_skipped", "data.verify_reads", "loss_scale.max_skipped_steps"),
)
_FREE_PREFIXES = ("data.remote.",)


def result_differences(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` for each key that changes the result; empty when `new` may continue the run of `old`."""
    return differences(_flat(old), new)


def differences(old_keys: Mapping[str, Any], new: Recipe) -> list[str]:
    """As result_differences, for what `result_keys` once gave of the old recipe."""
    new_keys = _flat(new)
    return [
        f"{key}: {old_keys.get(key, 'absent')} -> {new_keys.get(key, 'absent')}"
        for key in dict.fromkeys((*old_keys, *new_keys))
        if old_keys.get(key) != new_keys.get(key) and not _is_free(key, new) and not _is_accepted(key, new)
    ]


def result_keys(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide the result, dotted, with values that JSON keeps."""
    return {key: value for key, value in _flat(recipe).items() if not _is_free(key, recipe)}


def _is_free(key: str, recipe: Recipe) -> bool:
    # With these rates no earlier step depends on how long the run is, so it may be prolonged.
    prolongs = key == "run.steps" and recipe.schedule.kind in ("constant", "inverse_sqrt", "cosine_restarts")
    free = key in _FREE_KEYS or key.split(".")[0] in _FREE_SECTIONS or key.startswith(_FREE_PREFIXES)
    return prolongs or free


def _is_accepted(key: str, recipe: Recipe) -> bool:
    """A difference that the user asks for. What the run goes on with is a key of its result all the same."""
    return key == "model.code_sha256" and accepts_code_change(recipe.model)


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = value

    walk("", recipe.model_dump(mode="json", by_alias=True))
    if isinstance(recipe.model, UserModel):  # the file may move: its contents are compared as well
        flat["model.kind"] = OWN.replace("CLASS", recipe.model.kind.rpartition(":")[2])
    for source in recipe.data.train.sources:
        flat[f"data.train.shards.{source.name}"] = f"weight {source.weight!r}, {source.when_exhausted}"
    return flat


def result_sha256(recipe: Recipe) -> str:
    """Fingerprint of `result_keys`."""
    return hashlib.sha256(json.dumps(result_keys(recipe), sort_keys=True).encode()).hexdigest()
