"""`stoker check-task`: each promise that a task can break is found broken, and no other."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserCodeError
from tests.support.training.commands import STOKER
from tests.support.training.runs import GPT, RESNET, recipe_of, write_image_shards, write_text_shards
from trainer.launch.task_promises import check_promises

SMALL = """
import random
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from trainer import api
SEEN = []

class Small(api.Task):
    class Config(api.Config):
        classes: int = 3

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, self.config.classes))

    def sums(self, module, batch):
        images, labels = batch["images_BHWC"] / 255, batch["labels_B"]
        loss = F.cross_entropy(module(images), labels, ignore_index=-100, reduction="sum")
        return {"loss": loss, "weight": (labels != -100).sum()}
"""
SEED, DRAWS, FINITE, STATE, SUMS, WEIGHT, TRAINED = range(7)


CASES: dict[str, tuple[str, str, list[int], str]] = {
    "nothing": ("", "", [], ""),
    "a mean": ('reduction="sum")', 'reduction="mean")', [SUMS], '"loss" is'),
    "weight": ("(labels != -100).sum()", "(labels != -100).sum() * 2", [WEIGHT], '"weight" is 8, and the'),
    "random": ("/ 255", "/ 255 + random.random()", [DRAWS, STATE, SUMS], "in sums: `images"),
    "numpy": ("/ 255", "/ 255 + np.random.rand()", [DRAWS, STATE, SUMS], "NumPy's generator is drawn from"),
    "batch norm": ("nn.Dropout(0.5)", "nn.BatchNorm1d(8)", [STATE], "buffer model.2.running_mean changes in a forward"),
    "state": ("/ 255", "/ 255 * (len(SEEN) + (SEEN.append(1) is None))", [STATE, SUMS], "when another one came"),
    "detached": ("module(images)", "module[3](module[1](module[0](images)).detach())", [TRAINED], "model.1.weight"),
    "infinite": ('"sum")\n', '"sum") / 0\n', [FINITE], "it is inf"),
    "build": ("return nn", "torch.manual_seed(random.randrange(10**9)); return nn", [SEED, DRAWS], "in build"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_task_breaks_is_named(name: str, tmp_path: Path) -> None:
    old, new, broken, expected = CASES[name]
    write_image_shards(tmp_path)
    path = tmp_path / "small.py"
    path.write_text(SMALL.replace(old, new, 1))
    shards = {split: {"shards": str(tmp_path / f"{split}-*.tar")} for split in ("train", "val")}
    data = {"kind": "image", "size": 8, "channels": 1, **shards}
    promises = check_promises(recipe_of(tmp_path, {"kind": f"{path}:Small", "classes": 3}, "run", data=data))
    assert [number for number, promise in enumerate(promises) if promise.problem] == broken, promises
    assert any(expected in promise.problem for promise in promises), promises


@pytest.mark.parametrize("model", [GPT, RESNET], ids=["gpt", "resnet"])
def test_our_own_tasks_keep_every_promise(model: dict[str, Any], tmp_path: Path) -> None:
    (write_text_shards if model is GPT else write_image_shards)(tmp_path)
    assert [promise.problem for promise in check_promises(recipe_of(tmp_path, model, "run"))] == [""] * 7


def test_the_precision_of_the_recipe_is_that_of_the_check(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    shards = {split: {"shards": str(tmp_path / f"{split}-*.tar")} for split in ("train", "val")}
    data = {"kind": "image", "size": 8, "channels": 1, **shards}
    model = {"kind": f"{path}:Small", "classes": 3}
    recipe = recipe_of(tmp_path, model, "run", data=data, precision="bf16")
    with pytest.raises(UserCodeError, match=r"must have the same dtype.*in sums: `loss = "):
        check_promises(recipe)
    cast = SMALL.replace('"] / 255', '"].to(module[1].weight.dtype) / 255')
    path.write_text(cast.replace("(module(images),", "(module(images).float(),"))
    assert [promise.problem for promise in check_promises(recipe)] == [""] * 7


def test_the_command_tells_of_each_promise_and_fails_with_a_broken_one(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    (tmp_path / "small.py").write_text(SMALL.replace('"sum")', '"mean")'))
    shards = {split: {"shards": str(tmp_path / f"{split}-*.tar")} for split in ("train", "val")}
    recipe = recipe_of(tmp_path, {"kind": "resnet", "classes": 3}, "run").model_dump(mode="json", by_alias=True)
    recipe |= {"model": {"kind": "small.py:Small"}, "data": {"kind": "image", "size": 8, "channels": 1, **shards}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = subprocess.run([STOKER, "check-task", "recipe.yaml"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout.count("kept: ") == 6, done.stderr
    assert 'broken: loss, weight and metrics are sums over the micro-batch: "loss" is' in done.stderr
