"""The same global batch gives the same gradients and losses for any split, precision path and ZeRO stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.plain_pytorch import reference_losses_and_gradients
from tests.support.training.runs import GPT, recipe_of, write_text_shards

STEPS = 10


def _uneven(batch: Any) -> Any:
    """Mask a different share of the targets in every micro-batch."""
    from dataclasses import replace

    targets_BT = batch.arrays["targets_BT"].copy()
    targets_BT[:, : 3 * batch.index + 1] = -100
    return replace(batch, arrays={**batch.arrays, "targets_BT": targets_BT}, targets=int((targets_BT != -100).sum()))


def _engine_run(recipes: list[Recipe], steps: int = STEPS) -> list[dict[str, Any]]:
    return [_one_run(recipe, steps) for recipe in recipes]


def _one_run(recipe: Recipe, steps: int) -> dict[str, Any]:
    from cluster.run.ledger import Ledger
    from cluster.run.run_folder import RunFolder
    from data.batch import step_slices
    from data.dataset import open_dataset, read_micro_batch
    from trainer.engine.deepspeed_engine import DeepSpeedEngine
    from trainer.rank.context import Context
    from trainer.rank.ranks import Ranks
    from trainer.tasks.build_task import build_task
    from trainer.training.lr_schedule import learning_rate

    ranks = Ranks.connect()
    folder = RunFolder.of(recipe)
    folder.make()
    engine = DeepSpeedEngine(build_task(recipe), Context(recipe, folder, Ledger(folder.ledger), ranks, 1, ""))
    data = open_dataset(recipe, "train")
    before = {(f.parameter, f.start): f.tensor.clone() for f in engine.fragments() if f.kind == "master"}
    losses, scales, norms, moved = [], [], [], {}
    for step in range(1, steps + 1):
        slices = step_slices(step, recipe.batch, ranks.rank, ranks.world)
        batches = [_uneven(read_micro_batch(data, step, piece, recipe.batch.micro)) for piece in slices]
        weight = ranks.sum([sum(b.targets for b in batches)])[0]
        lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.run.steps)
        result = engine.train_step(batches, step, weight, lr)
        losses.append(ranks.sum([float(result.loss_sum)])[0] / weight)
        scales.append((result.loss_scale, result.skipped))
        norms.append(float(result.grad_norm))
        if step == 1:
            after = {(f.parameter, f.start): f.tensor for f in engine.fragments() if f.kind == "master"}
            moved = {key: ((before[key] - after[key]) / lr).numpy() for key in before}
    engine.close()
    return {"losses": losses, "scales": scales, "norms": norms, "gradients": moved}


def _recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    """Plain SGD at rate 1: the weights move by the gradient."""
    model = {**GPT, "dropout": 0.0}
    defaults: dict[str, Any] = {
        "batch": {"global": 8, "micro": 1},
        "optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"kind": "constant"},
    }
    return recipe_of(folder, model, name, **{**defaults, **sections})


def _zero(stage: int, *offloaded: str) -> dict[str, Any]:
    return {"stage": stage, **{f"offload_{what}": "cpu" for what in offloaded}}


HALF = [("bf16", _zero(stage)) for stage in range(4)] + [("fp16", _zero(stage)) for stage in (1, 2, 3)]
OFFLOADED = [
    *(("fp32", _zero(stage, "optimizer")) for stage in (1, 2, 3)),
    *(("bf16", _zero(stage, "optimizer")) for stage in (1, 2)),
    ("fp16", _zero(2, "optimizer")),
    *((precision, _zero(3, "optimizer", "parameters")) for precision in ("fp32", "bf16", "fp16")),
]


def _ops_looked_at(recipe: Recipe) -> bool:
    import sys

    assert "deepspeed.ops.op_builder.all_ops" not in sys.modules  # nor has the fork server looked
    _one_run(recipe, 1)
    return "deepspeed.ops.op_builder.all_ops" in sys.modules


def test_an_engine_starts_without_trying_each_op_of_deepspeed_with_a_compiler(shards: Path) -> None:
    assert run_in_processes(_ops_looked_at, 1, shards / "store", _recipe(shards, "run")) == [False]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_text_shards(tmp_path)
    return tmp_path


def _masked_reference(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict[str, torch.Tensor]]:
    from tests.support.training import plain_pytorch

    real = plain_pytorch.read_micro_batch

    def masked(data: Any, step: int, piece: Any, micro: int) -> Any:
        batch = real(data, step, piece, micro)
        for row in range(micro):
            batch.arrays["targets_BT"][row, : 3 * row + 1] = -100
        return batch

    monkeypatch.setattr(plain_pytorch, "read_micro_batch", masked)
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


def test_clipped_updates_are_those_of_pytorch_at_every_stage_and_precision_and_with_offload(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, gradients = _masked_reference(_recipe(shards, "reference"), monkeypatch)
    norm = float(torch.nn.utils.get_total_norm(gradients.values()))
    clip = norm / 4
    sections = {
        "optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "grad_clip": clip},
        "loss_scale": {"initial_power": 8},
    }
    cases = [("fp32", _zero(stage)) for stage in range(4)] + HALF + OFFLOADED
    recipes = [_recipe(shards, f"r{i}", precision=p, zero=zero, **sections) for i, (p, zero) in enumerate(cases)]
    # Plain SGD at a constant rate has no state: the first update is compared with PyTorch's, and three more use it.
    per_rank = run_in_processes(_engine_run, 2, shards / "store", recipes, 4)
    whole = per_rank[0][0]["losses"]
    for number, (precision, zero) in enumerate(cases):
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        for results in per_rank:
            result = results[number]
            assert result["norms"][0] == pytest.approx(norm, rel=tolerance), (precision, zero)
            np.testing.assert_allclose(result["losses"], whole, rtol=tolerance, err_msg=f"{precision} {zero}")
            for (name, start), piece in result["gradients"].items():
                expected = gradients[name].reshape(-1)[start : start + piece.size].numpy() * clip / norm
                atol = tolerance * abs(expected).max() + 1e-7
                np.testing.assert_allclose(piece.reshape(-1), expected, rtol=tolerance, atol=atol)


def test_an_update_of_fp16_is_as_large_where_the_loss_scale_doubles(shards: Path) -> None:
    rising = {"precision": "fp16", "loss_scale": {"initial_power": 4, "window_steps": 1}}
    recipes = [_recipe(shards, "fp32")]
    for stage in (1, 2, 3):
        recipes.append(_recipe(shards, f"z{stage}", zero=_zero(stage), **rising))
        recipes.append(_recipe(shards, f"o{stage}", zero=_zero(stage, "optimizer"), **rising))
    expected, *found = run_in_processes(_engine_run, 2, shards / "store", recipes)[0]
    for result in found:
        assert [scale for scale, _ in result["scales"]] == [2.0**power for power in (4, *range(5, 14))]
        np.testing.assert_allclose(result["losses"], expected["losses"], rtol=5e-3)
        np.testing.assert_allclose(result["norms"], expected["norms"], rtol=5e-2)


def test_a_loss_scale_that_is_too_high_halves_until_training_goes_on(shards: Path) -> None:
    high = {"precision": "fp16", "loss_scale": {"initial_power": 24, "hysteresis": 1}}
    recipes = [_recipe(shards, f"z{stage}", zero=_zero(stage), **high) for stage in (1, 2, 3)]
    for result in run_in_processes(_engine_run, 2, shards / "store", recipes)[0]:
        skipped = [skip for _, skip in result["scales"]]
        assert skipped[0]
        assert not skipped[-1]
        assert result["scales"][-1][0] < 2.0**24
        assert result["losses"][-1] < result["losses"][0]
