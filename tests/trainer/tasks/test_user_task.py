"""A task of the user's own, from a file outside the checkout: it trains as ours do, and its mistakes are named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.run.run_folder import RunFolder
from configs.checkout import CHECKOUT
from configs.compare import result_differences, result_keys
from configs.effect import check_keep_best
from configs.errors import RecipeError, RunFolderError, UserCodeError
from configs.load import dump_recipe, load_recipe
from configs.reading.user_code import describe
from configs.recipe import KeepBest, Recipe
from configs.sections.model_section import UserModel, accepting_code_change
from tests.support.training.commands import STOKER
from tests.support.training.runs import (
    GPT,
    digests,
    history,
    recipe_of,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from trainer.huggingface.architecture import architecture
from trainer.launch.final_summary import validation_line
from trainer.launch.memory_estimate import estimate
from trainer.launch.preflight import check_resumable
from trainer.tasks.build_task import build_task
from trainer.tasks.user_task import open_user_task

# Our own Transformer as a user's model: the seam may change no bit of it.
WRAPPED_GPT = """
from torch.nn import functional as F
from configs.sections.model_section import GptModel
from trainer import api
from trainer.models.gpt import Gpt

class Wrapped(api.Task):
    units = "tokens"

    class Config(api.Config):
        layers: int
        heads: int
        width: int
        context: int
        dropout: float

    def build(self):
        return Gpt(GptModel(kind="gpt", **self.config.model_dump()), self.facts.vocab)

    def sums(self, module, batch):
        targets = batch["targets_BT"].flatten()
        logits = module(batch["tokens_BT"], None).float().flatten(0, 1)
        loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        return {"loss": loss, "weight": (targets != -100).sum()}
"""

SMALL = """
import torch
from torch import nn
from torch.nn import functional as F
from trainer import api

class Small(api.Task):
    class Config(api.Config):
        width: int = 8
        classes: int = 3

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.config.width), nn.ReLU(), nn.Dropout(0.1),
                             nn.Linear(self.config.width, self.config.classes))

    def sums(self, module, batch):
        images = batch["images_BHWC"].to(next(module.parameters()).dtype) / 255
        logits, labels = module(images).float(), batch["labels_B"]
        loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return {"loss": loss, "weight": (labels != -100).sum(), "accuracy": (logits.argmax(1) == labels).sum()}
"""
VALIDATED = "width: int = 8\n        @field_validator('width')\n        "
IMAGES: dict[str, Any] = {"kind": "image", "size": 8, "channels": 1}


def _images(folder: Path) -> dict[str, Any]:
    return {**IMAGES, **{split: {"shards": str(folder / f"{split}-*.tar")} for split in ("train", "val")}}


def _small(folder: Path, name: str, source: str = SMALL, **sections: Any) -> Recipe:
    path = folder / f"{name}.py"
    path.write_text(source)
    return recipe_of(
        folder, {"kind": f"{path}:Small", "width": 8, "classes": 3}, name, data=_images(folder), **sections
    )


def _file(folder: Path, source: str = SMALL, **model: Any) -> Path:
    """A recipe file whose model is in small.py beside it."""
    (folder / "small.py").write_text(source)
    recipe = recipe_of(folder, {"kind": "resnet", "classes": 3}, "run").model_dump(mode="json", by_alias=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "model": {"kind": "small.py:Small", **model}}))
    return path


def test_our_transformer_through_a_users_file_gives_the_bits_that_it_gives_by_itself(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    path = tmp_path / "wrapped.py"
    path.write_text(WRAPPED_GPT)
    own = {**{k: v for k, v in GPT.items() if k != "kind"}, "kind": f"{path}:Wrapped"}
    settings = {"zero": {"stage": 1}, "validation": {"every_steps": 5, "sample_tokens": 0}}
    recipes = [recipe_of(tmp_path, model, name, **settings) for model, name in ((GPT, "ours"), (own, "theirs"))]
    train_in_processes(tmp_path / "store", 2, [(recipe, None) for recipe in recipes])
    ours, theirs = recipes
    assert digests(ours, 10) == digests(theirs, 10)
    assert [line["loss"] for line in history(ours)] == [line["loss"] for line in history(theirs)]
    assert history(theirs)[-1]["tokens"] == history(ours)[-1]["tokens"]


def test_a_model_of_ones_own_is_the_same_when_it_is_stopped_and_on_every_stage_and_precision(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    jobs, pairs = [], []
    for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "fp16"), (3, "fp32")):
        settings = {"zero": {"stage": stage}, "precision": precision}
        whole, cut = (_small(tmp_path, f"{name}_{stage}", **settings) for name in ("whole", "cut"))
        jobs += [(whole, None), (cut, 7), (cut, None)]
        pairs.append((whole, cut))
    train_in_processes(tmp_path / "store", 2, jobs)
    for whole, cut in pairs:
        assert digests(whole, 10) == digests(cut, 10)
        last = history(whole)[-1]
        assert 0 <= last["val_accuracy"] <= 1 and "tokens" not in last
    assert digests(pairs[0][0], 10).keys() == digests(pairs[3][0], 10).keys()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"widht": 4}, ["model.widht is unknown (", "did you mean width? known: width, classes, kind"]),
        ({"width": "wide"}, ["model.width is 'wide' (", "expected integer"]),
        ({"kind": "gone.py:Small"}, ["model.kind: gone.py cannot be read (No such file or directory, working"]),
        ({"kind": "small.py:Smal"}, ["model.kind: small.py has no class Smal; it has Small"]),
        ({"kind": "small.txt:Small"}, ["model.kind is 'small.txt:Small' (", "'gpt', 'resnet', 'FILE.py:CLASS'"]),
    ],
    ids=["key", "value", "file", "class", "kind"],
)  # fmt: skip
def test_a_mistake_in_the_recipe_is_named(
    model: dict[str, Any], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(_file(tmp_path, **model))
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("class Small(api.Task):", "class Small(api.Task:"), "small.py:7: invalid syntax"),
        (("import torch\n", "import torch\nnothing.at_all\n"), "(small.py:3, in <module>: `nothing.at_all`)"),
        (("nn.ReLU()", "nn.Relu()"), "(small.py:13, in build: `return nn.Sequential("),
        (("return nn.Sequential(nn.Flatten(),", "return (nn.Flatten(),"), "Small.build gives tuple: return a torch.nn"),
        (("(api.Task)", ""), "class Small of small.py is no trainer.api.Task"),
    ],
    ids=["syntax", "import", "build", "no module", "no task"],
)
def test_an_error_in_the_users_file_shows_the_users_line(
    change: tuple[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((RecipeError, UserCodeError)) as caught:
        build_task(load_recipe(_file(tmp_path, SMALL.replace(*change))))
    assert expected in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"weight"', '"count"', "Small.sums gives ['accuracy', 'count', 'loss']: return a dictionary with"),
        (
            "(labels != -100).sum()",
            "labels != -100",
            "Small.sums gives 'weight' of shape (2,): every entry is one number",
        ),
        ("(labels != -100).sum()", "2", "Small.sums gives 'weight': 2: give real tensors by name"),
        ('"loss": loss', '"loss": loss.detach()', 'Small.sums gives a "loss" without a gradient'),
        ('reduction="sum"', "reduktion=1", "in sums: `loss = F.cross_entropy("),
    ],
    ids=["names", "shape", "type", "gradient", "error"],
)
def test_sums_that_are_none_are_refused(
    old: str, new: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batch = {"images_BHWC": torch.zeros(2, 8, 8, 1, dtype=torch.uint8), "labels_B": torch.tensor([0, -100])}
    task = build_task(load_recipe(_file(tmp_path, SMALL.replace(old, new))))
    with pytest.raises(Exception) as caught:
        task.module(**batch)
    assert expected in describe(caught.value)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (VALIDATED + "def twice(cls, v): return 2 * v", "when that is read again"),
        ("width: float = float('inf')", "give it a type that JSON keeps"),
        ("width: set[str] = {'a', 'b'}", "a secret or a set is not the same in every process"),
        ("width: SecretStr = 'hush'", "a secret or a set is not the same in every process"),
        ("width: int = Field(8, exclude=True)", "its field is excluded"),
        ("code_sha256: int = 8", "has a field code_sha256, which is Stoker's: rename it"),
        (VALIDATED + "def no(cls, v): raise RuntimeError('no width')", "no width"),
    ],
    ids=["validator", "infinite", "set", "secret", "excluded", "taken", "raises"],
)  # fmt: skip
def test_a_config_that_workers_would_read_differently_is_refused(
    field: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = SMALL.replace("width: int = 8", field).replace("import torch\n", "import torch\nfrom pydantic import *\n")
    path = _file(tmp_path, source)
    if "twice" in field or "no(" in field:
        path = _file(tmp_path, source, width=3)
    with pytest.raises((RecipeError, UserCodeError)) as caught:
        load_recipe(path)
    assert expected in str(caught.value)


def test_nested_values_an_alias_and_a_computed_field_come_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields = (
        "width: int = Field(8, alias='hidden')\n        sizes: tuple[int, ...] = (1, 2)\n        model_config = "
        "ConfigDict(populate_by_name=True)\n        @computed_field\n"
        "        def twice(self) -> int: return 2 * self.width"
    )
    source = SMALL.replace("width: int = 8", fields).replace("import torch\n", "import torch\nfrom pydantic import *\n")
    recipe = load_recipe(_file(tmp_path, source, hidden=5))
    task = open_user_task(recipe, recipe.model)  # type: ignore[arg-type]
    assert (task.config.width, task.config.sizes, task.config.twice) == (5, (1, 2), 10)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("nn.ReLU()", "nn.ReLU().double(), nn.Linear(8, 8).double()", "parameter 3.weight is torch.float64: build in"),
        ("return nn.Sequential(", "return nn.Sequential() if True else nn.Sequential(", "a module without a parameter"),
        ("class Config", 'units = "atoms"\n    class Config', "Small.units is 'atoms': choose from tokens, images"),
        ("class Config", 'units = "tokens"\n    class Config', "and data.kind is image: set \"images\" or"),
        ("class Config", "flops_per_target = lambda self, n: None\n    class Config", "flops_per_target gives None"),
        ("return nn.Sequential(", "import sys; sys.exit(3); return nn.Sequential(", "SystemExit: 3"),
    ],
    ids=["dtype", "none", "units", "tokens", "flops", "exit"],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_the_start(
    old: str, new: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserCodeError) as caught:
        estimate(load_recipe(_file(tmp_path, SMALL.replace(old, new))))
    assert expected in str(caught.value)


def test_own_metrics_are_in_the_last_summary_and_a_best_checkpoint_needs_to_know_its_good_end(tmp_path: Path) -> None:
    recipe = _small(tmp_path, "own")
    line = {"step": 4, "val_loss": 1.5, "val_top1": 0.25}
    assert validation_line(recipe, line) == "validation at step 4: loss 1.5000, top1 0.2500"
    best = recipe.checkpoint.model_copy(update={"keep_best": KeepBest(metric="val_top1")})
    with pytest.raises(RecipeError, match=r"set checkpoint\.keep_best\.mode to max or min"):
        check_keep_best(recipe.model_copy(update={"checkpoint": best}))


def test_the_code_of_a_run_is_in_its_checkpoints_after_a_change_too_and_its_file_may_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(_file(tmp_path))
    accepting = recipe.model_copy(update={"model": accepting_code_change(recipe.model)})
    assert result_keys(accepting) == result_keys(recipe)
    assert "model.code_sha256" in result_keys(recipe)
    (tmp_path / "moved.py").write_text(SMALL)
    assert result_differences(recipe, load_recipe(_file(tmp_path, kind="moved.py:Small"))) == []


def test_a_resolved_recipe_has_every_default_and_is_read_without_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(_file(tmp_path, width=5))
    assert isinstance(recipe.model, UserModel)
    assert recipe.model.settings == {"width": 5, "classes": 3} and len(recipe.model.code_sha256 or "") == 64
    assert estimate(recipe).parameters == 64 * 5 + 5 + 5 * 3 + 3
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "small.py").unlink()
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    with pytest.raises(Exception, match=r"a model of your own .* has no class of Hugging Face"):
        architecture(recipe.model, 1)


def test_changed_code_is_refused_until_it_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, after = (load_recipe(_file(tmp_path, source)) for source in (SMALL, SMALL.replace("0.1", "0.2")))
    assert [each.partition(":")[0] for each in result_differences(before, after)] == ["model.code_sha256"]
    accepting = after.model_copy(update={"model": accepting_code_change(after.model)})
    assert result_differences(before, accepting) == []
    assert dump_recipe(accepting) == dump_recipe(after)

    class Store:
        def steps(self) -> list[int]:
            return [5]

    folder = RunFolder(tmp_path / "runs" / "run")
    folder.make()
    folder.recipe.write_text(dump_recipe(before))
    with pytest.raises(RunFolderError, match=r"another version of small\.py.*--code-changed"):
        check_resumable(after, folder, Store())  # type: ignore[arg-type]
    check_resumable(accepting, folder, Store())  # type: ignore[arg-type]


def test_a_copy_is_run_in_the_files_place_and_what_lies_beside_the_file_shadows_nothing(tmp_path: Path) -> None:
    """In a process of its own: a folder that is once on the path stays there."""
    (tmp_path / "data.py").write_text("raise RuntimeError('the wrong data')")
    (tmp_path / "helper.py").write_text("WIDTH = 11")
    source = SMALL.replace("import torch\n", "import torch\nimport helper\n").replace(
        "width: int = 8", "width: int = helper.WIDTH"
    )
    path = _file(tmp_path, source)
    program = (
        "import sys, os; sys.path.remove(''); os.chdir(sys.argv[1])\n"
        "from pathlib import Path\n"
        "from configs.load import load_recipe\n"
        "from trainer.tasks.build_task import build_task\n"
        "recipe = load_recipe(Path('recipe.yaml'))\n"
        "Path('copy.py').write_bytes(Path('small.py').read_bytes()); Path('small.py').unlink()\n"
        "task = build_task(recipe, Path('copy.py'))\n"
        "import data\n"
        "print(recipe.model.settings['width'], sum(p.numel() for p in task.module.parameters()), data.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path.parent)], capture_output=True, text=True, cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["11", str(64 * 11 + 11 + 11 * 3 + 3), str(CHECKOUT / "data" / "__init__.py")]


def test_images_need_classes_and_text_a_context(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    bare = recipe_of(tmp_path, {"kind": f"{path}:Small", "width": 4}, "run", data=_images(tmp_path))
    assert isinstance(bare.model, UserModel)
    with pytest.raises(RecipeError, match=r"model\.classes is None: data\.kind image needs it; give the Config of"):
        bare.model.setting("classes", "data.kind image")


def test_the_schema_of_a_recipe_has_the_keys_of_its_own_model(tmp_path: Path) -> None:
    command = [STOKER, "schema", str(_file(tmp_path))]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    own = printed["$defs"]["OwnModel"]
    assert set(own["properties"]) == {"kind", "width", "classes"} and own["additionalProperties"] is False


def test_the_start_of_a_task_that_stoker_writes_is_one_that_trains(tmp_path: Path) -> None:
    new = [STOKER, "new", "task", "my_task.py"]
    said = subprocess.run(new, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "stoker train my_task.yaml" in said
    again = subprocess.run(new, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2 and "is there already" in again.stderr
    write_image_shards(tmp_path / "shards" / "digits")
    steps = ["run.steps=4", "schedule.warmup_steps=1", "validation.every_steps=4", "model.classes=3"]
    planned = [STOKER, "plan", "my_task.yaml", *steps]
    done = subprocess.run(planned, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "nothing stands in the way" in done.stdout, done.stderr
