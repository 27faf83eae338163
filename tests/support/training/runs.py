"""Small real runs for tests: shards, a recipe, and the worker's own entry point in processes of a gloo group."""

import io
import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.run.ledger import read_json_lines
from configs.load import dump_recipe
from configs.recipe import Recipe
from data.pack.shard_writer import Parts, write_shard
from tests.support.processes import run_in_processes

GPT = {"kind": "gpt", "layers": 2, "heads": 2, "width": 32, "context": 16, "dropout": 0.1}
RESNET = {"kind": "resnet", "depth": 18, "classes": 3, "width": 4, "stem": "small", "dropout": 0.1}


def write_text_shards(folder: Path, documents: int = 120) -> None:
    """train-*.tar and val-*.tar with random printable documents of 5 to 60 bytes."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", documents), ("val", 9)):
        texts = [rng.integers(97, 107, size=int(rng.integers(5, 60)), dtype=np.uint8).tobytes() for _ in range(count)]
        _write_shards(folder, split, [{"txt": text} for text in texts], 50)


def write_image_shards(folder: Path, images: int = 60) -> None:
    """train-*.tar and val-*.tar with 8×8 grey PNGs of 3 classes."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", images), ("val", 7)):
        samples = []
        for number in range(count):
            pixels_HW = (rng.integers(0, 80, (8, 8)) + 80 * (number % 3)).astype(np.uint8)
            png = io.BytesIO()
            Image.fromarray(pixels_HW).save(png, "PNG")
            samples.append({"png": png.getvalue(), "cls": str(number % 3).encode()})
        _write_shards(folder, split, samples, 25)


def _write_shards(folder: Path, split: str, samples: list[Parts], per_shard: int) -> None:
    """SPLIT-000000.tar …, with keys SPLIT-0000 …"""
    keyed = [(f"{split}-{number:04d}", parts) for number, parts in enumerate(samples)]
    for number, start in enumerate(range(0, len(keyed), per_shard)):
        write_shard(folder / f"{split}-{number:06d}.tar", keyed[start : start + per_shard])


def recipe_of(folder: Path, model: dict[str, Any], name: str, **sections: Any) -> Recipe:
    """A run of 10 steps on the shards of `folder`; `sections` replace the defaults here."""
    shards = {split: {"shards": str(folder / f"{split}-*.tar")} for split in ("train", "val")}
    image = {"kind": "image", "size": 8, "channels": 1, "augment": {"crop_padding": 1}}
    data = {**(image if model["kind"] == "resnet" else {"kind": "text"}), **shards}
    recipe: dict[str, Any] = {
        "run": {"name": name, "dir": str(folder / "runs"), "steps": 10},
        "model": model,
        "data": data,
        "batch": {"global": 8, "micro": 2},
        "optimizer": {"kind": "adamw", "lr": 1e-2},
        "schedule": {"kind": "cosine", "warmup_steps": 3},
        "checkpoint": {"every_steps": 5},
        "validation": {"every_steps": 5, "sample_tokens": 20},
        "workers": {"count": 2},
        "monitor": {"every_steps": 1, "audit_samples": True},
    }
    return Recipe.model_validate({**recipe, **sections})


def run_folder_of(recipe: Recipe) -> Path:
    return Path(recipe.run.dir) / recipe.run.name


def run_job(recipe: Recipe, stop_at: int | None = None, chaos: list[str] | None = None) -> None:
    """One invocation inside the calling worker process."""
    import torch

    from cluster.run.run_folder import RunFolder
    from trainer.rank.worker_job import WorkerJob
    from trainer.training.worker import main

    folder = RunFolder.of(recipe)
    if torch.distributed.get_rank() == 0:
        folder.make()
        folder.recipe.write_text(dump_recipe(recipe))
    torch.distributed.barrier()
    box = [uuid.uuid4().hex]
    torch.distributed.broadcast_object_list(box, src=0)
    data = recipe.model_dump(mode="json", by_alias=True)
    job = WorkerJob(data, str(folder.root), str(Path.cwd()), box[0], time.time(), stop_at, chaos or []).encode()
    while main(job):  # the workers left in order to be started again
        torch.distributed.barrier()
    torch.distributed.barrier()


def run_jobs(jobs: list[tuple[Recipe, int | None]]) -> None:
    for recipe, stop_at in jobs:
        run_job(recipe, stop_at)


def train_in_processes(store: Path, world: int, jobs: list[tuple[Recipe, int | None]]) -> None:
    """Each (recipe, stop_at) in turn, in one group of `world` worker processes."""
    run_in_processes(run_jobs, world, store, jobs)


_CLOCK = {
    "step_s",
    "samples_per_s",
    "tokens_per_s",
    "data_wait_s",
    "checkpoint_s",
    "validation_s",
    "mfu",
    "time",
    "goodput",
    "worker_goodput",
    "wall_s",
    "slowest_rank",
    "slowest_rank_ratio",
    "rank_own_s",
    "rank_data_wait_s",
}


def history(recipe: Recipe) -> list[dict[str, Any]]:
    """The committed metrics without what a clock or the host says: equal runs have equal histories."""
    lines = [json.loads(line) for line in (run_folder_of(recipe) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _CLOCK | {"attempt", "host_bytes"}} for line in lines]


def events(recipe: Recipe, kind: str) -> list[dict[str, Any]]:
    """The ledger's events of one kind."""
    return [event for event in read_json_lines(run_folder_of(recipe) / "ledger.jsonl") if event["event"] == kind]


def spoil_image(shard: Path) -> None:
    """Overwrite the head of the first PNG of a shard."""
    content = bytearray(shard.read_bytes())
    place = content.index(b"\x89PNG")
    content[place : place + 60] = bytes(60)
    shard.write_bytes(content)


def digests(recipe: Recipe, step: int) -> dict[str, str]:
    """Fingerprints of every stored state of one checkpoint."""
    from cluster.run.run_folder import RunFolder
    from trainer.checkpoint.open_store import checkpoint_store
    from trainer.checkpoint.reader import CheckpointReader, verify

    folder = checkpoint_store(RunFolder.of(recipe), recipe).at(step)
    with CheckpointReader(folder, verify(folder)) as reader:
        return reader.digests()


def samples(recipe: Recipe) -> dict[int, set[str]]:
    """The keys of each step, of the last attempt that trained it."""
    found: dict[int, tuple[int, set[str]]] = {}
    for path in sorted((run_folder_of(recipe) / "audit").iterdir()):
        attempt = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            record = json.loads(line)
            last, keys = found.get(record["step"], (0, set()))
            keys = keys | set(record["keys"]) if last == attempt else set(record["keys"])
            found[record["step"]] = (attempt, keys)
    return {step: keys for step, (_, keys) in found.items()}
