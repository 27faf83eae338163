"""The estimate against what really happens: counted operations, saved tensors, optimizer states, published figures."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs.checkout import CHECKOUT
from configs.load import load_recipe
from configs.recipe import Recipe
from configs.sections.model_section import GptModel, ResnetModel
from tests.support.training.runs import GPT, recipe_of, write_text_shards
from trainer.engine import hardware
from trainer.engine.deepspeed_config import build_optimizer
from trainer.engine.hardware import sheet_flops
from trainer.launch.memory_estimate import estimate, worker_memory
from trainer.launch.preflight import describe, disk_bytes, kept_checkpoints, readable
from trainer.models.cost import (
    gpt_activation_bytes,
    gpt_flops_per_token,
    resnet_activation_bytes,
    resnet_flops_per_image,
    shapes_only,
)
from trainer.models.gpt import Gpt
from trainer.models.resnet import Resnet
from trainer.tasks.build_task import build_task

CONFIGS = CHECKOUT / "configs"
RESNETS = [(34, "small", 17), (50, "imagenet", 65)]


def gpt(**settings: object) -> GptModel:
    return GptModel.model_validate({"kind": "gpt", "layers": 3, "heads": 4, "width": 64, "context": 32, **settings})


def resnet(depth: int, stem: str) -> Resnet:
    config = {"kind": "resnet", "depth": depth, "stem": stem, "classes": 10, "width": 4}
    return Resnet(ResnetModel.model_validate(config), channels=3)


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for backward, parameters left out."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(("depth", "stem", "size"), RESNETS)
def test_resnet_operations_are_those_that_torch_counts(depth: int, stem: str, size: int) -> None:
    model = resnet(depth, stem)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, size, size)).sum().backward()
    assert resnet_flops_per_image(model, size) == counter.get_total_flops() / 2


def test_resnet50_takes_its_published_4_1_giga_multiply_adds_forward() -> None:
    with shapes_only():
        model = Resnet(ResnetModel.model_validate({"kind": "resnet", "depth": 50, "classes": 1000}), channels=3)
    assert resnet_flops_per_image(model, 224) / 6 == pytest.approx(4.09e9, rel=0.02)


@pytest.mark.parametrize("settings", [{}, {"positions": "learned", "tie_embeddings": False, "activation": "gelu"}])
def test_gpt_operations_are_those_that_torch_counts(settings: dict[str, Any]) -> None:
    model = Gpt(gpt(**settings), vocab=300)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(2, 32, dtype=torch.long)).sum().backward()
    assert gpt_flops_per_token(model) == pytest.approx(counter.get_total_flops() / 64, rel=0.01)


@pytest.mark.parametrize(("depth", "stem", "size"), RESNETS)
def test_resnet_activations_are_the_tensors_that_autograd_saves(depth: int, stem: str, size: int) -> None:
    model, images = resnet(depth, stem), torch.randn(4, 3, size, size)
    found = saved_bytes(model, lambda: model(images).logsumexp(dim=1).sum())
    assert resnet_activation_bytes(model, size, images=4, element_bytes=4) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"kv_heads": 2},
        {"positions": "learned", "activation": "gelu", "bias": True},
        {"checkpoint_activations": True},
    ],
)
def test_gpt_activations_are_the_tensors_that_autograd_saves(settings: dict[str, Any], dtype: torch.dtype) -> None:
    # RMSNorm has no fused kernel on the host, where it keeps fp32 copies that an accelerator does not.
    config = gpt(layers=6, width=128, context=64, norm="layernorm", **settings)
    model, tokens = Gpt(config, vocab=300).to(dtype), torch.zeros(4, 64, dtype=torch.long)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten(), reduction="sum")

    gradient_bytes = 4 * 64 * 300 * 4
    recomputed_bytes = 0
    if config.checkpoint_activations:
        with_one, without = (
            gpt_activation_bytes(config.model_copy(update={"layers": n, "checkpoint_activations": False}), 300, 4, 1)
            for n in (2, 1)
        )
        recomputed_bytes = (with_one - without) * dtype.itemsize  # of one block, alive in backward only
    expected = gpt_activation_bytes(config, 300, rows=4, element_bytes=dtype.itemsize)
    assert expected - gradient_bytes - recomputed_bytes == pytest.approx(saved_bytes(model, loss), rel=0.05)


def test_gpt2_layers_keep_korthikanti_s_34_bytes_per_width_and_token() -> None:
    config = gpt(width=1024, heads=16, activation="gelu", positions="learned", dropout=0.1)
    more = gpt_activation_bytes(config.model_copy(update={"layers": 4}), 300, 1, 2)
    per_token = (more - gpt_activation_bytes(config, 300, 1, 2)) / config.context
    assert per_token == pytest.approx(34 * 1024, rel=0.005)


def recipe(name: str = "gpt_tiny", *overrides: str) -> Recipe:
    return load_recipe(CONFIGS / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", ["gpt_tiny", "resnet_digits"])
def test_the_checkpoint_is_as_large_as_the_state_after_a_step(name: str) -> None:
    settings = recipe(name)
    task = build_task(settings)
    optimizer = build_optimizer(settings.optimizer, task.parameter_groups())
    for parameter in task.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    kept = [*task.module.parameters(), *task.module.buffers(), *(s for s in states if s.ndim)]
    assert estimate(settings).checkpoint_bytes == sum(tensor.nbytes for tensor in kept)


def test_unsharded_mixed_precision_adam_takes_16_bytes_per_parameter() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters take 120 GB on each worker, 31.4 GB with stage 1.

    Stage 1 has 2 bytes more per parameter here, as gradients add up in fp32.
    """
    settings = recipe("gpt_tiny", "precision=bf16", "workers.count=64")
    parameters = 7_500_000_000
    assert worker_memory(settings, parameters, 0, 0).device_bytes == pytest.approx(120e9)
    assert worker_memory(settings, parameters, 1, 0).device_bytes == pytest.approx(31.4e9 + 2 * parameters, rel=0.001)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_stage_needs_less_memory_and_offloading_moves_it_without_loss(precision: str) -> None:
    plain = estimate(recipe("gpt_tiny", f"precision={precision}", "workers.count=8", "zero.stage=3")).memory
    assert [memory.stage for memory in plain] == [0, 1, 2, 3]
    sizes = [memory.device_bytes for memory in plain]
    assert sizes == sorted(sizes, reverse=True)
    offload = ["zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_parameters=cpu"]
    moved = estimate(recipe("gpt_tiny", f"precision={precision}", "workers.count=8", *offload)).memory
    for before, after in zip(plain, moved, strict=True):
        assert after.device_bytes + after.offloaded_bytes == before.device_bytes
    assert moved[3].device_bytes == moved[3].activations_bytes


@pytest.mark.parametrize(
    ("name", "parameters", "targets"),
    [("gpt_124m", 124_439_808 + 47 * 768, 480 * 1024), ("resnet50_imagenet", 25_557_032, 1024)],
)
def test_shipped_recipes_are_valid_and_of_the_published_size(name: str, parameters: int, targets: int) -> None:
    figures = estimate(recipe(name))
    assert figures.parameters == sum(figures.parameters_by_group.values()) == parameters
    assert figures.targets_per_step == targets
    assert figures.flops_per_step == figures.flops_per_target * targets


def test_room_for_the_checkpoints_is_reckoned_with_every_rule_that_keeps_one(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    kept = {"every_steps": 10, "keep_last": 2, "keep_every_steps": 50, "keep_best": {"count": 4}}
    validation = {"every_steps": 10}
    long = recipe_of(tmp_path, GPT, "run", run={"name": "run", "steps": 1000}, checkpoint=kept, validation=validation)
    assert [kept_checkpoints(long, step) for step in (0, 500, 1000)] == [6, 16, 26]
    short = recipe_of(tmp_path, GPT, "run", run={"name": "run", "steps": 50}, checkpoint=kept, validation=validation)
    assert kept_checkpoints(short, 50) == 5  # there are no more
    each = estimate(long).checkpoint_bytes
    assert disk_bytes(long, 0) == 7 * each
    assert f"26 kept in the end and one in work need {readable(27 * each)}" in "\n".join(describe(long))


def test_the_peak_of_a_gpu_is_that_of_its_own_data_sheet() -> None:
    known = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A800-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 NVL": 835e12,
        "NVIDIA H20": 148e12,
        "NVIDIA H200": 989e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA B200": 2250e12,
        "NVIDIA GB200": 2500e12,
        "NVIDIA L40": 181e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA RTX 6000 Ada Generation": 364e12,
        "NVIDIA GeForce RTX 4090": 165e12,
        "Tesla V100-SXM2-32GB": 125e12,
        "Tesla T4": 65e12,
        "AMD Instinct MI300X": 1307e12,
    }
    assert {name: sheet_flops(name) for name in known} == known


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA A10G", "NVIDIA RTX A1000", "NVIDIA RTX 6000", "Quadro RTX 6000"),
        *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
    ],
)
def test_a_gpu_that_is_not_known_is_measured_in_the_precision_of_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.dtype] = []

    def measure(device: torch.device, dtype: torch.dtype) -> float:
        measured.append(dtype)
        return 1e12

    gpu = SimpleNamespace(get_device_name=lambda: name)
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    monkeypatch.setattr(hardware, "_measured_matmul_flops", measure)
    hardware.peak_flops.cache_clear()
    for precision in ("fp32", "bf16", "fp16"):
        assert hardware.peak_flops(torch.device("cuda"), precision) == 1e12
    hardware.peak_flops.cache_clear()
    assert measured == [torch.float32, torch.bfloat16, torch.float16]


def test_a_plan_tells_that_zero_3_begins_with_the_whole_model(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    sharded, whole = (recipe_of(tmp_path, GPT, "run", zero={"stage": stage}) for stage in (3, 2))
    assert "start: each worker holds the whole model before it is sharded" in describe(sharded)[-1]
    assert not [line for line in describe(whole) if line.startswith("start")]
