"""Each optimizer of a recipe: the updates of plain PyTorch, and its state through checkpoints on any ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.training.plain_pytorch import reference_losses_and_gradients
from tests.support.training.runs import GPT, digests, history, recipe_of, train_in_processes, write_text_shards

PLAIN = {"weight_decay": 0.0, "grad_clip": 0.0}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2},
    "adam": {"lr": 1e-2},
    "sgd": {"lr": 0.3},
    "sgd without momentum": {"kind": "sgd", "lr": 0.3, "momentum": 0.0},
    "rmsprop": {"lr": 2e-3},
    "rmsprop with momentum": {"kind": "rmsprop", "lr": 1e-3, "momentum": 0.9},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_makes_the_updates_of_plain_pytorch_and_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    model, optimizer = {**GPT, "dropout": 0.0}, {"kind": name, **PLAIN, **OPTIMIZERS[name]}
    settings = {"optimizer": optimizer, "validation": None}
    made = lambda name, stage, **more: recipe_of(tmp_path, model, name, zero={"stage": stage}, **settings, **more)  # noqa: E731
    by_stage = {stage: [made(f"{each}-{stage}", stage) for each in ("whole", "cut")] for stage in (0, 1, 3)}
    half = [made(f"{each}-bf16", 2, precision="bf16") for each in ("whole", "cut")]
    pairs = [*by_stage.values(), half]
    jobs = [job for whole, cut in pairs for job in ((whole, None), (cut, 7), (cut, None))]
    train_in_processes(tmp_path / "store", 2, jobs)
    for whole, cut in pairs:
        assert history(whole) == history(cut)
        assert digests(whole, 10) == digests(cut, 10)
    expected, _ = reference_losses_and_gradients(by_stage[1][0], 10)
    for whole, _ in by_stage.values():
        assert [line["loss"] for line in history(whole)] == pytest.approx(expected, rel=2e-5)
    assert len({tuple(sorted(digests(whole, 10))) for whole, _ in pairs}) == 1
