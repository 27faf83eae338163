"""How gradients cross ranks: in which precision, how many of them, and what that costs the update."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.runs import GPT, recipe_of, write_text_shards

CASES = [(precision, stage) for precision in ("bf16", "fp16") for stage in (1, 2, 3)]
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "all_reduce_coalesced")


def _updates(recipes: list[Recipe]) -> list[tuple[dict[tuple[str, int], Any], Counter[tuple[str, str]]]]:
    return [_update(recipe) for recipe in recipes]


def _update(recipe: Recipe) -> tuple[dict[tuple[str, int], Any], Counter[tuple[str, str]]]:
    """What one step of SGD at rate 1 takes from the weights, and how many elements were reduced by kind and dtype."""
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
    reduced = _count_reductions()
    before = {(f.parameter, f.start): f.tensor.clone() for f in engine.fragments() if f.kind == "master"}
    data = open_dataset(recipe, "train")
    slices = step_slices(1, recipe.batch, ranks.rank, ranks.world)
    batches = [read_micro_batch(data, 1, piece, recipe.batch.micro) for piece in slices]
    engine.train_step(batches, 1, ranks.sum([sum(b.targets for b in batches)])[0], 1.0)
    after = {(f.parameter, f.start): f.tensor for f in engine.fragments() if f.kind == "master"}
    engine.close()
    return {key: (before[key] - after[key]).numpy() for key in before}, reduced


def _count_reductions() -> Counter[tuple[str, str]]:
    """Elements that DeepSpeed hands to each kind of reduction from now on; of flags and norms there are few."""
    import deepspeed
    import torch

    found: Counter[tuple[str, str]] = Counter()
    backend = deepspeed.comm.comm.cdb

    def counted(name: str, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [a for a in (*arguments, *options.values()) if isinstance(a, torch.Tensor)]
            largest = max(tensors, key=torch.numel)
            if largest.numel() > 64:
                found[name, str(largest.dtype)] += largest.numel()
            return method(*arguments, **options)

        return call

    for name in REDUCTIONS:
        if hasattr(backend, name):
            setattr(backend, name, counted(name, getattr(backend, name)))
    return found


def _recipe(folder: Path, precision: str, stage: int, reduce_dtype: str) -> Recipe:
    return recipe_of(
        folder,
        {**GPT, "dropout": 0.0},
        f"{precision}-{stage}-{reduce_dtype}",
        precision=precision,
        zero={"stage": stage, "reduce_dtype": reduce_dtype},
        batch={"global": 8, "micro": 1},
        schedule={"kind": "constant"},
        loss_scale={"initial_power": 12},
        optimizer={"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    )


def _whole(pieces: list[dict[tuple[str, int], Any]]) -> Any:
    """The update of all ranks, as one vector."""
    found = {key: piece.reshape(-1).astype(np.float64) for rank in pieces for key, piece in rank.items()}
    return np.concatenate([found[key] for key in sorted(found)])


def test_gradients_of_half_precision_are_summed_in_fp32_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    """The same micro-batches on one and on two workers: what differs is the sum over workers alone."""
    write_text_shards(tmp_path)
    recipes = [_recipe(tmp_path, *case, dtype) for case in CASES for dtype in ("fp32", "model")]
    one, two = (run_in_processes(_updates, world, tmp_path / f"store-{world}", recipes) for world in (1, 2))
    for number, (precision, stage) in enumerate(CASES):
        error, dtypes = {}, {}
        for place, reduce_dtype in enumerate(("fp32", "model")):
            alone, both = (_whole([rank[2 * number + place][0] for rank in ranks]) for ranks in (one, two))
            error[reduce_dtype] = np.linalg.norm(both - alone) / np.linalg.norm(alone)
            dtypes[reduce_dtype] = {dtype for _, dtype in two[0][2 * number + place][1]}
        half = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[precision]
        assert dtypes == {"fp32": {"torch.float32"}, "model": {half}}, (precision, stage)
        assert error["fp32"] < 1e-5, (precision, stage, error)
        assert error["model"] > 5e-5, (precision, stage, error)


def test_a_gradient_is_reduced_to_the_rank_that_owns_it_alone(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    cases = [("fp32", 1), *CASES]
    recipes = [_recipe(tmp_path, *case, "fp32") for case in cases]
    for (precision, stage), (moved, reduced) in zip(
        cases, run_in_processes(_updates, 2, tmp_path / "store", recipes)[0], strict=True
    ):
        assert {kind for kind, _ in reduced} == {"reduce_scatter_tensor" if stage == 3 else "reduce"}, (
            precision,
            stage,
        )
        elements, rounds = 2 * sum(piece.size for piece in moved.values()), 1 if stage == 1 else 4
        assert reduced.total() == pytest.approx(rounds * elements, rel=0.01), (precision, stage)
