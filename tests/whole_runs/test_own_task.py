"""A task from a user's own file through `stoker train`: a run ends with the code that it began with."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.training.commands import start, steps_done, train, wait_for
from tests.support.training.runs import (
    digests,
    events,
    history,
    recipe_of,
    run_folder_of,
    train_in_processes,
    write_image_shards,
)

SMALL = """
from torch import nn
from torch.nn import functional as F
from trainer import api

class Small(api.Task):
    class Config(api.Config):
        width: int = 8
        classes: int = 3

    def build(self):
        width = self.config.width
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Dropout(0.1), nn.Linear(width, self.config.classes))

    def sums(self, module, batch):
        labels = batch["labels_B"]
        loss = F.cross_entropy(module(batch["images_BHWC"] / 255), labels, ignore_index=-100, reduction="sum")
        return {"loss": loss, "weight": (labels != -100).sum()}
"""


@pytest.mark.slow
def test_an_edit_during_a_run_changes_nothing_of_it_and_is_asked_about_afterwards(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    shards = {split: {"shards": str(tmp_path / f"{split}-*.tar")} for split in ("train", "val")}
    data = {"kind": "image", "size": 8, "channels": 1, **shards}
    model = {"kind": f"{file}:Small", "width": 8, "classes": 3}
    run = {"dir": str(tmp_path / "runs"), "steps": 300}
    sections = {"data": data, "checkpoint": {"every_steps": 20}, "monitor": {"every_steps": 5}, "validation": None}
    calm, rough = (recipe_of(tmp_path, model, "", run={**run, "name": n}, **sections) for n in ("calm", "rough"))

    for name in ("data", "cluster", "trainer", "configs", "random"):  # as users name their files
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a module of the working folder, not ours')")
    process = start(rough, tmp_path)
    wait_for(lambda: steps_done(rough) > 40, process)
    file.write_text("raise RuntimeError('edited while it runs')")
    os.kill(int(str(events(rough, "attempt_started")[0]["pid"])), signal.SIGKILL)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    assert len(events(rough, "attempt_started")) == 2

    file.write_text(SMALL)
    train_in_processes(tmp_path / "store", 2, [(calm, None)])
    assert history(calm) == history(rough)
    assert digests(calm, 300) == digests(rough, 300)
    (copy,) = (run_folder_of(rough) / "code").glob("*/small.py")
    assert copy.read_text() == SMALL

    file.write_text(SMALL.replace("0.1", "0.2"))
    code, output = train(rough, tmp_path)
    assert code == 2 and "--code-changed" in output
