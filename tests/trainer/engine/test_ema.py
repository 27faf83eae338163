"""The average of the weights: the same on any layout, kept through checkpoints, and no part of training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.runs import (
    GPT,
    RESNET,
    digests,
    history,
    recipe_of,
    run_job,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from trainer.checkpoint.open_store import checkpoint_store
from trainer.training.attempt import Attempt

DECAY = 0.6  # reached by the warm-up's (1 + n)/(10 + n) after 13 steps: both sides of the minimum are taken
STEPS = 16


def _masters_and_averages(recipes: list[Recipe]) -> list[dict[str, Any]]:
    return [_one_run(recipe) for recipe in recipes]


def _one_run(recipe: Recipe) -> dict[str, Any]:
    """This rank's masters after every step, and its average after the last: {(parameter, start): values}."""
    from cluster.run.ledger import Ledger
    from cluster.run.run_folder import RunFolder
    from data.batch import step_slices
    from data.dataset import open_dataset, read_micro_batch
    from trainer.engine.deepspeed_engine import DeepSpeedEngine
    from trainer.rank.context import Context
    from trainer.rank.ranks import Ranks
    from trainer.tasks.build_task import build_task

    ranks, folder = Ranks.connect(), RunFolder.of(recipe)
    folder.make()
    engine = DeepSpeedEngine(build_task(recipe), Context(recipe, folder, Ledger(folder.ledger), ranks, 1, ""))
    data = open_dataset(recipe, "train")

    def of_kind(kind: str) -> dict[tuple[str, int], Any]:
        found = {(f.parameter, f.start): f.tensor.clone().numpy().ravel() for f in engine.fragments() if f.kind == kind}
        if kind == "master":
            statistics = {n: b for n, b in engine.buffers().items() if not n.startswith("ema/")}
        else:
            statistics = {n.removeprefix("ema/"): b for n, b in engine.buffers().items() if n.startswith("ema/")}
        return {**found, **{(name, 0): value.clone().numpy() for name, value in statistics.items()}}

    masters, skipped = [of_kind("master")], []
    for step in range(1, STEPS + 1):
        slices = step_slices(step, recipe.batch, ranks.rank, ranks.world)
        batches = [read_micro_batch(data, step, piece, recipe.batch.micro) for piece in slices]
        weight = ranks.sum([sum(b.targets for b in batches)])[0]
        skipped.append(engine.train_step(batches, step, weight, 1e-2).skipped)
        masters.append(of_kind("master"))
    average = of_kind("ema")
    engine.close()
    return {"masters": masters, "skipped": skipped, "average": average}


def _naive(masters: list[dict[Any, Any]], skipped: list[bool]) -> dict[Any, Any]:
    average = {key: value.astype(np.float64) for key, value in masters[0].items()}
    updates = 0
    for after, skip in zip(masters[1:], skipped, strict=True):
        if not skip:
            updates += 1
            decay = min(DECAY, (1 + updates) / (10 + updates))
            average = {key: decay * value + (1 - decay) * after[key] for key, value in average.items()}
    return average


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_the_average_is_that_of_the_definition_at_every_stage_and_precision(tmp_path: Path, world: int) -> None:
    write_text_shards(tmp_path / "text")
    write_image_shards(tmp_path / "image")
    ema = {"decay": DECAY}
    zeros = [{"stage": stage} for stage in range(4)] + [{"stage": s, "offload_optimizer": "cpu"} for s in (2, 3)]
    recipes = [recipe_of(tmp_path / "text", GPT, f"z{i}", zero=zero, ema=ema) for i, zero in enumerate(zeros)]
    recipes.append(recipe_of(tmp_path / "image", RESNET, "image", zero={"stage": 1}, ema=ema))
    half = {"precision": "fp16", "loss_scale": {"initial_power": 24, "hysteresis": 1}}
    recipes.append(recipe_of(tmp_path / "text", GPT, "half", zero={"stage": 2}, ema=ema, **half))
    for results in run_in_processes(_masters_and_averages, world, tmp_path / "store", recipes):
        for recipe, result in zip(recipes, results, strict=True):
            expected = _naive(result["masters"], result["skipped"])
            assert expected.keys() == result["average"].keys() != set()
            assert (recipe.precision == "fp16") == any(result["skipped"])
            for key, value in result["average"].items():
                np.testing.assert_allclose(
                    value, expected[key], rtol=1e-5, atol=1e-7, err_msg=f"{recipe.run.name} {key}"
                )


def _training(recipe: Recipe) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("val_")} for line in history(recipe)]


@pytest.mark.parametrize("model", [GPT, RESNET], ids=["gpt", "resnet"])
def test_an_average_changes_no_bit_of_training_and_validates_its_own_weights(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    (write_text_shards if model is GPT else write_image_shards)(tmp_path)
    often = {"every_steps": 4, "sample_tokens": 4}
    pairs, jobs = [], []
    for stage in range(4):
        plain = recipe_of(tmp_path, model, f"plain-{stage}", zero={"stage": stage}, validation=often)
        kept = recipe_of(tmp_path, model, f"kept-{stage}", zero={"stage": stage}, validation=often, ema={"decay": 0.9})
        pairs.append((plain, kept))
        jobs += [(plain, None), (kept, None)]
    train_in_processes(tmp_path / "store", 2, jobs)
    for plain, kept in pairs:
        assert _training(plain) == _training(kept)
        of_plain, of_kept = digests(plain, 10), digests(kept, 10)
        assert {k: v for k, v in of_kept.items() if not k.startswith(("ema/", "buffer/ema/"))} == of_plain
        losses = [[line["val_loss"] for line in history(r) if "val_loss" in line] for r in (plain, kept)]
        assert all(a != b for a, b in zip(*losses, strict=True))


def test_the_average_is_stored_bit_for_bit_and_loads_on_another_stage_and_number_of_workers(tmp_path: Path) -> None:
    write_image_shards(tmp_path)
    whole, cut, moved = (
        recipe_of(tmp_path, RESNET, name, zero={"stage": stage}, ema={"decay": 0.9})
        for name, stage in (("whole", 1), ("cut", 1), ("moved", 3))
    )
    train_in_processes(tmp_path / "two", 2, [(whole, None), (cut, 7), (cut, None), (moved, 5)])
    assert digests(whole, 10) == digests(cut, 10)
    assert history(whole) == history(cut)
    before = digests(moved, 5)
    unsharded = recipe_of(tmp_path, RESNET, "moved", zero={"stage": 0}, ema={"decay": 0.9})
    assert run_in_processes(_loaded_and_saved_again, 1, tmp_path / "one", unsharded, 5) == [before]


def _loaded_and_saved_again(recipe: Recipe, step: int) -> dict[str, str]:
    """Digests of the checkpoint that a run writes when it has loaded the one of `step` and takes no further step."""
    real_save_last = Attempt.save_last

    def save_last(self: Attempt, at: int) -> None:
        checkpoint_store(self.context.folder, self.recipe).remove(at)
        self.saved_step = -1
        real_save_last(self, at)

    Attempt.save_last = save_last  # type: ignore[method-assign]  # a run does not save what it has just loaded
    run_job(recipe, step)
    return digests(recipe, step)
