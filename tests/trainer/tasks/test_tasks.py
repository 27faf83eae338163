"""Tasks: sums over valid targets, groups that are complete, weights that follow from the seed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import DataError, RecipeError
from configs.recipe import Recipe
from trainer.tasks.build_task import build_task
from trainer.tasks.classification import ClassificationModule
from trainer.tasks.task_protocol import EngineTask

LANGUAGE: dict[str, Any] = {
    "run": {"name": "t", "steps": 1},
    "model": {"kind": "gpt", "layers": 2, "heads": 2, "width": 32, "context": 8, "positions": "learned"},
    "data": {"kind": "text", "train": {"shards": "none.tar"}},
    "batch": {"global": 8, "micro": 4},
    "optimizer": {"kind": "adamw"},
}
IMAGES: dict[str, Any] = LANGUAGE | {
    "model": {"kind": "resnet", "classes": 5, "width": 4, "stem": "small", "label_smoothing": 0.1},
    "data": {"kind": "image", "size": 16, "train": {"shards": "none.tar"}},
    "optimizer": {"kind": "sgd", "weight_decay": 1e-3},
}


def task(base: dict[str, Any], **sections: dict[str, Any]) -> EngineTask:
    merged = {key: base.get(key, {}) | sections.get(key, {}) for key in base.keys() | sections.keys()}
    return build_task(Recipe.model_validate(merged))


def classifier(**sections: dict[str, Any]) -> ClassificationModule:
    module = task(IMAGES, **sections).module
    assert isinstance(module, ClassificationModule)
    return module


def text_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(257, (2, 4, 8), generator=generator)
    targets[1, 3:] = -100
    return {"tokens_BT": tokens, "targets_BT": targets}


def image_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return {"images_BHWC": images, "labels_B": torch.tensor([0, 1, 2, 3, 4, -100])}


BATCHES = [(LANGUAGE, text_batch()), (IMAGES, image_batch())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_sums_are_over_valid_targets_and_fp32(dtype: torch.dtype) -> None:
    module, batch = task(LANGUAGE).module.to(dtype), text_batch()
    sums = module(**batch)
    log_p = module(batch["tokens_BT"]).float().log_softmax(dim=2)
    valid = batch["targets_BT"] != -100
    expected = -log_p[valid].gather(1, batch["targets_BT"][valid][:, None]).sum()
    assert {name: (value.dtype, value.shape) for name, value in sums.items()} == {
        "loss": (torch.float32, ()),
        "weight": (torch.float32, ()),
    }
    assert sums["weight"] == 4 * 8 - 5
    torch.testing.assert_close(sums["loss"], expected)


@pytest.mark.parametrize("model", [{}, {"positions": "rope", "kv_heads": 1, "checkpoint_activations": True}])
def test_the_loss_of_packed_documents_is_that_of_each_alone(model: dict[str, Any]) -> None:
    module, batch = task(LANGUAGE, model=model).module, text_batch()
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1]] * 4)
    batch["targets_BT"][documents == -1] = -100
    sums = module(**batch, documents_BT=documents)
    alone = [
        module(tokens[which == number][None], targets[which == number][None])
        for tokens, targets, which in zip(batch["tokens_BT"], batch["targets_BT"], documents, strict=True)
        for number in range(3)
    ]
    assert sums["weight"] == sum(part["weight"] for part in alone)
    torch.testing.assert_close(sums["loss"], torch.stack([part["loss"] for part in alone]).sum())


def test_classification_smooths_in_training_only_and_ignores_the_unlabelled() -> None:
    module, batch = classifier().eval(), image_batch()
    images, labels = module.normalise(batch["images_BHWC"]), batch["labels_B"][:5]
    logits = module.model(images)[:5]
    sums = module(**batch)
    torch.testing.assert_close(sums["loss"], F.cross_entropy(logits, labels, reduction="sum"))
    assert (sums["weight"], sums["correct"]) == (5, (logits.argmax(dim=1) == labels).sum())
    module.train()
    logits = module.model(images)[:5]
    smoothed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(module(**batch)["loss"], smoothed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_images_are_normalised_per_channel_into_the_model_s_dtype(dtype: torch.dtype) -> None:
    module = classifier(data={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}).to(dtype)
    pixels = image_batch()["images_BHWC"]
    expected = (pixels.numpy() / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    normal = module.normalise(pixels)
    assert normal.dtype == dtype
    assert normal.stride() == torch.empty(normal.shape).stride()
    torch.testing.assert_close(
        normal.double(), torch.from_numpy(expected.transpose(0, 3, 1, 2)), rtol=torch.finfo(dtype).eps, atol=1e-6
    )


def test_channels_lie_last_in_memory_on_an_accelerator() -> None:
    normal = classifier().to("meta").normalise(image_batch()["images_BHWC"].to("meta"))
    assert normal.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("base", "batch"), BATCHES)
def test_a_batch_without_targets_has_weight_zero_and_finite_zero_gradients(
    base: dict[str, Any], batch: dict[str, Tensor]
) -> None:
    module = task(base).module
    blank = {name: torch.zeros_like(value) for name, value in batch.items()}
    blank = {name: value - 100 if name in ("targets_BT", "labels_B") else value for name, value in blank.items()}
    sums = module(**blank)
    sums["loss"].backward()
    assert all(value == 0 for value in sums.values())
    assert not any(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(("base", "batch"), BATCHES)
def test_groups_hold_every_trainable_parameter_once_and_spare_norms_biases_and_embeddings(
    base: dict[str, Any], batch: dict[str, Tensor]
) -> None:
    built = task(base, model={"bias": True, "norm": "layernorm"} if base is LANGUAGE else {})
    frozen = next(p for p in built.module.parameters() if p.ndim == 1).requires_grad_(False)
    groups = {group.name: group for group in built.parameter_groups()}
    found = [id(p) for group in groups.values() for p in group.parameters]
    trainable = {id(p) for p in built.module.parameters() if p is not frozen}
    assert len(found) == len(set(found))
    assert set(found) == trainable
    assert groups["no_decay"].weight_decay == 0.0
    assert groups["decay"].weight_decay == base["optimizer"].get("weight_decay", 0.1)
    names = {id(p): name for name, p in built.module.named_parameters()}
    spared = {names[id(p)] for p in groups["no_decay"].parameters}
    embeddings = {"model.embed.weight", "model.positions.weight"} if base is LANGUAGE else set()
    assert spared == embeddings | {n for n, p in built.module.named_parameters() if p.ndim == 1 and p is not frozen}


def test_embeddings_are_decayed_when_asked_for() -> None:
    groups = {group.name: group for group in task(LANGUAGE, optimizer={"decay_embeddings": True}).parameter_groups()}
    assert all(p.ndim == 1 for p in groups["no_decay"].parameters)


@pytest.mark.parametrize(("base", "batch"), BATCHES)
def test_weights_follow_from_the_seed_alone_and_building_disturbs_no_other_draw(
    base: dict[str, Any], batch: dict[str, Tensor]
) -> None:
    torch.manual_seed(1)
    first = task(base).module.state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = task(base).module.state_dict(), task(base, run={"seed": 3}).module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("base", "batch"), BATCHES)
def test_the_task_can_be_learnt(base: dict[str, Any], batch: dict[str, Tensor]) -> None:
    built = task(base)
    optimizer = torch.optim.Adam(built.module.parameters(), lr=1e-2)
    built.module.train()
    for _ in range(40):
        sums = built.module(**batch)
        optimizer.zero_grad()
        (sums["loss"] / sums["weight"]).backward()
        optimizer.step()
    figures = built.metrics({name: float(value.detach()) for name, value in built.module(**batch).items()})
    if base is LANGUAGE:
        assert figures["loss"] < 0.2
        assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    else:
        assert figures["accuracy"] == 1.0


def test_metrics_of_a_diverged_run_do_not_fail_and_those_of_no_target_say_why() -> None:
    built = task(LANGUAGE)
    assert built.metrics({"loss": 5000.0, "weight": 2.0}) == {"loss": 2500.0, "perplexity": math.inf}
    with pytest.raises(DataError, match="holds no valid target"):
        built.metrics({"loss": 0.0, "weight": 0.0})


def test_samples_are_reproducible_and_keep_to_the_data_s_tokens() -> None:
    built = task(
        LANGUAGE | {"data": {"kind": "tokens", "vocab": 30, "train": {"shards": "none.tar"}}}, model={"vocab": 64}
    )
    lengths: list[int] = []

    def forward(tokens_BT: Tensor) -> Tensor:
        lengths.append(tokens_BT.shape[1])
        logits_BTV: Tensor = built.module(tokens_BT)
        return logits_BTV

    text = built.samples(forward, torch.device("cpu"), 200)
    assert text == built.samples(forward, torch.device("cpu"), 200)
    assert text is not None
    ids = [int(word) for word in text.split()]
    assert len(ids) == 200
    assert max(ids) < 30
    assert len(set(ids)) > 5
    assert max(lengths) == 8, "the window slides at the model's context"


def test_byte_samples_are_text_and_images_make_none() -> None:
    built = task(LANGUAGE)
    assert built.samples(built.module, torch.device("cpu"), 20)
    assert task(IMAGES).samples(built.module, torch.device("cpu"), 20) is None


def test_a_vocabulary_smaller_than_the_tokenizer_s_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"model\.vocab is 256, but data\.tokenizer bytes has ids up to 256"):
        task(LANGUAGE, model={"vocab": 256})


def test_a_micro_batch_that_batch_norm_cannot_normalise_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"batch\.micro is 1 and data\.size 8"):
        task(IMAGES, data={"size": 8}, batch={"micro": 1})
    smallest = task(IMAGES, data={"size": 9}, batch={"micro": 1}).module.train()
    assert smallest(torch.zeros(1, 9, 9, 3, dtype=torch.uint8), torch.tensor([0]))["weight"] == 1
