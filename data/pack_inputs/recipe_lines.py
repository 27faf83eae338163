"""The lines of a recipe that use packed shards."""

from pathlib import Path

from data.pack.pack_manifest import MANIFEST, read_json
from data.pack.pack_plan import Json
from data.pack_inputs.text_part import TEXT_PART, TOKENS_PART

__all__ = ["recipe_lines"]


def recipe_lines(out: Path) -> list[str]:
    """`data:` of a recipe for the shards of `out`; none when their parts are none that Stoker trains on."""
    manifest: Json = read_json(out / MANIFEST)
    kind = _kind(manifest)
    if kind is None:
        return []
    train = f"train: {{shards: '{out}/train-*.tar'}}"
    val = f", val: {{shards: '{out}/val-*.tar'}}" if manifest["val"]["samples"] else ""
    lines = ["in a recipe:", f"  data: {{{kind}, {train}{val}}}"]
    classes = manifest.get("classes")
    return [*lines, f"  model: {{kind: resnet, classes: {len(classes)}}}"] if classes else lines


def _kind(manifest: Json) -> str | None:
    parts = manifest["parts"]
    if TOKENS_PART in parts and "vocab" in manifest:
        return f"kind: tokens, vocab: {manifest['vocab']}"
    if TEXT_PART in parts:
        return "kind: text"
    return "kind: image" if "cls" in parts else None
