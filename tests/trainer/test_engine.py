"""The same global batch gives the same gradients and losses for any split, precision path and ZeRO stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.recipe import Recipe
from tests.processes import run_in_processes
from tests.trainer.reference import reference_losses_and_gradients
from tests.trainer.runs import GPT, recipe_of, write_text_shards

STEPS = 10


def _uneven(batch: Any) -> Any:
    """Mask a different share of the targets in every micro-batch."""
    from dataclasses import replace

    targets_BT = batch.arrays["targets_BT"].copy()
    targets_BT[:, : 3 * batch.index + 1] = -100
    return replace(batch, arrays={**batch.arrays, "targets_BT": targets_BT}, targets=int((targets_BT != -100).sum()))


def _engine_run(recipes: list[Recipe]) -> list[dict[str, Any]]:
    return [_one_run(recipe) for recipe in recipes]


def _one_run(recipe: Recipe) -> dict[str, Any]:
    from data.batch import step_slices
    from data.dataset import open_dataset, read_micro_batch
    from trainer.context import Context
    from trainer.deepspeed_engine import DeepSpeedEngine
    from trainer.ledger import Ledger
    from trainer.ranks import Ranks
    from trainer.run_folder import RunFolder
    from trainer.schedule import learning_rate
    from trainer.tasks.build import build_task

    ranks = Ranks.connect()
    folder = RunFolder.of(recipe)
    folder.make()
    engine = DeepSpeedEngine(build_task(recipe), Context(recipe, folder, Ledger(folder.ledger), ranks, 1, ""))
    data = open_dataset(recipe, "train")
    before = {(f.parameter, f.start): f.tensor.clone() for f in engine.fragments() if f.kind == "master"}
    losses, scales, moved = [], [], {}
    for step in range(1, STEPS + 1):
        slices = step_slices(step, recipe.batch, ranks.rank, ranks.world)
        batches = [_uneven(read_micro_batch(data, step, piece, recipe.batch.micro)) for piece in slices]
        weight = ranks.sum([sum(b.targets for b in batches)])[0]
        lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.run.steps)
        result = engine.train_step(batches, step, weight, lr)
        losses.append(ranks.sum([float(result.loss_sum)])[0] / weight)
        scales.append((result.loss_scale, result.skipped))
        if step == 1:
            after = {(f.parameter, f.start): f.tensor for f in engine.fragments() if f.kind == "master"}
            moved = {key: ((before[key] - after[key]) / lr).numpy() for key in before}
    engine.close()
    return {"losses": losses, "scales": scales, "gradients": moved}


def _recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    """Plain SGD at rate 1: the weights move by the gradient."""
    model = {**GPT, "dropout": 0.0}
    defaults: dict[str, Any] = {
        "batch": {"global": 8, "micro": 1},
        "optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"kind": "constant"},
    }
    return recipe_of(folder, model, name, **{**defaults, **sections})


def _zero(stage: int, offload_to: str) -> dict[str, Any]:
    return {"stage": stage, "offload_optimizer": offload_to}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_text_shards(tmp_path)
    return tmp_path


def _masked_reference(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict[str, torch.Tensor]]:
    from tests.trainer import reference

    real = reference.read_micro_batch

    def masked(data: Any, step: int, piece: Any, micro: int) -> Any:
        batch = real(data, step, piece, micro)
        for row in range(micro):
            batch.arrays["targets_BT"][row, : 3 * row + 1] = -100
        return batch

    monkeypatch.setattr(reference, "read_micro_batch", masked)
    return reference_losses_and_gradients(recipe, STEPS)


def test_any_split_of_a_global_batch_with_unequal_token_counts_gives_the_reference_gradients(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, gradients = _masked_reference(_recipe(shards, "reference"), monkeypatch)
    for world in (1, 2, 4):  # 1×8, 2×4 and 4×2: workers × accumulation rounds
        recipes = [_recipe(shards, f"w{world}-z{stage}", zero={"stage": stage}) for stage in range(4)]
        per_rank = run_in_processes(_engine_run, world, shards / f"store-{world}", recipes)
        for stage in range(4):
            np.testing.assert_allclose(per_rank[0][stage]["losses"], losses, rtol=1e-5)
            for results in per_rank:
                for (name, start), piece in results[stage]["gradients"].items():
                    expected = gradients[name].reshape(-1)[start : start + piece.size].numpy()
                    # 1e-7: the gradient is read off weights of about 1, which fp32 rounds at that size.
                    tolerance = 1e-5 * abs(expected).max() + 1e-7
                    np.testing.assert_allclose(piece.reshape(-1), expected, rtol=1e-5, atol=tolerance)


def test_half_precision_offload_and_clipping_train_at_every_stage(shards: Path) -> None:
    adam = {"optimizer": {"kind": "adamw", "lr": 1e-2}, "loss_scale": {"initial_power": 24, "hysteresis": 1}}
    cases = [("bf16", stage, "none") for stage in range(4)] + [("fp16", stage, "none") for stage in (1, 2, 3)]
    cases += [("fp32", stage, "cpu") for stage in (1, 2, 3)] + [("fp32", 0, "none")]
    recipes = [
        _recipe(shards, f"{precision}-{stage}-{to}", precision=precision, zero=_zero(stage, to), **adam)
        for precision, stage, to in cases
    ]
    results = run_in_processes(_engine_run, 2, shards / "store", recipes)[0]
    expected = results[-1]["losses"]
    for (precision, _, _), result in zip(cases, results, strict=True):
        skipped = [skip for _, skip in result["scales"]]
        if precision == "fp16":
            # A scale of 2**24 overflows half precision: steps are skipped while it halves, then training goes on.
            assert skipped[0]
            assert not skipped[-1]
            assert result["scales"][-1][0] < 2.0**24
            assert result["losses"][-1] < result["losses"][0]
        else:
            tolerance = 1e-5 if precision == "fp32" else 2e-2
            np.testing.assert_allclose(result["losses"], expected, rtol=tolerance)
