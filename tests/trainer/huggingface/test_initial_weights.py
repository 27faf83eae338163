"""`model.init_from`: weights that transformers saved start the run, bit for bit; nothing else is taken."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    StableLmConfig,
    Starcoder2Config,
)

from configs.errors import RecipeError
from configs.recipe import Recipe
from tests.support.training.runs import (
    digests,
    events,
    history,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from tests.support.training.tiny_huggingface import RESNETS, checkpoint_of, gpt_recipe, resnet_recipe
from trainer.huggingface.architecture import architecture
from trainer.huggingface.compare_weights import match_weights
from trainer.huggingface.export import ExportOptions, export
from trainer.huggingface.init_from import check_initial_weights, copy_weights
from trainer.huggingface.stored_weights import open_weights
from trainer.launch.preflight import preflight
from trainer.tasks.build_task import build_task

_SIZES = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT2_SIZES = {"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
_RESNET_SIZES = {"num_labels": 3, "embedding_size": 4}
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(
        **_SIZES,
        num_key_value_heads=2,
        intermediate_size=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
    ),
    "llama-biased": LlamaConfig(
        **_SIZES, intermediate_size=48, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True, rope_parameters=_ROPE
    ),
    "gpt2": GPT2Config(**_GPT2_SIZES),
    "arcee": ArceeConfig(
        **_SIZES,
        intermediate_size=128,
        hidden_act="gelu_pytorch_tanh",
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters=_ROPE,
    ),
    "starcoder2": Starcoder2Config(**_SIZES, intermediate_size=128, num_key_value_heads=2, rope_parameters=_ROPE),
    "stablelm": StableLmConfig(
        **_SIZES,
        intermediate_size=128,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        rope_parameters={**_ROPE, "partial_rotary_factor": 1.0},
    ),
    "resnet18": ResNetConfig(**_RESNET_SIZES, hidden_sizes=[4, 8, 16, 32], depths=[2, 2, 2, 2], layer_type="basic"),
    "resnet50": ResNetConfig(**_RESNET_SIZES, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3]),
}
STILL: dict[str, Any] = {"kind": "sgd", "lr": 0.0, "momentum": 0.0, "weight_decay": 0.0}  # a step changes no weight


def saved_model(name: str, folder: Path, **how: Any) -> PreTrainedModel:
    """A model that transformers initialises at random, its norms and biases too, and saves."""
    kind = AutoModelForImageClassification if name in RESNETS else AutoModelForCausalLM
    model = kind.from_config(CONFIGS[name])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if "running" in n)):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
        if name == "stablelm":  # its norms have biases, but ours only where every layer has one
            for key, parameter in model.named_parameters():
                parameter.mul_(not key.endswith("norm.bias"))
    model.save_pretrained(folder, **how)
    return model.eval()  # type: ignore[no-any-return]


def recipe_from(folder: Path, name: str, **sections: Any) -> Recipe:
    """A run that starts from the folder `name` beside the shards."""
    make = resnet_recipe if name in RESNETS else gpt_recipe
    sections["run_name"] = sections.pop("run", name)
    model = {"init_from": str(folder / name), **sections.pop("model", {})}
    return make(folder, name, model=model, **{"optimizer": STILL, "schedule": {"kind": "constant"}, **sections})


@torch.no_grad()
def test_weights_of_every_class_go_through_a_run_and_back_bit_for_bit(tmp_path: Path) -> None:
    text, image = tmp_path / "text", tmp_path / "image"
    write_text_shards(text)
    write_image_shards(image)
    runs = {}
    for i, name in enumerate(CONFIGS):
        folder = image if name in RESNETS else text
        # Some in several files, as large models are.
        theirs = saved_model(name, folder / name, max_shard_size="40KB" if i % 2 else "5GB")
        runs[name] = (theirs, recipe_from(folder, name, zero={"stage": i % 4}))
    assert list((text / "llama-biased").glob("model-00002-of-*.safetensors"))
    train_in_processes(tmp_path / "store", 2, [(recipe, 1) for _, recipe in runs.values()])
    for name, (theirs, recipe) in runs.items():
        out = tmp_path / "out" / name
        export(recipe, *checkpoint_of(recipe, 1), out, ExportOptions())
        before, after = theirs.state_dict(), type(theirs).from_pretrained(out).state_dict()
        moving = [key for key in before if "running_" in key or "num_batches" in key]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before if key not in moving), name
        [event] = events(recipe, "initialised")
        assert event["sha256"].keys() == {path.name for path in Path(event["path"]).glob("*.safetensors")}


def filled(recipe: Recipe, inputs: int) -> torch.nn.Module:
    module = build_task(recipe).module
    stored = open_weights(Path(recipe.model.init_from or ""))
    copy_weights(module, stored, match_weights(stored, architecture(recipe.model, inputs)))
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_our_model_computes_the_logits_of_the_model_it_was_filled_from(tmp_path: Path, name: str) -> None:
    theirs = saved_model(name, tmp_path / name)
    if name in RESNETS:
        inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    else:
        inputs = torch.arange(64).view(4, 16) * 4
    ours = filled(recipe_from(tmp_path, name), 3 if name in RESNETS else 257).model(inputs)
    scale = float(ours.abs().max())
    assert scale > 0.1
    torch.testing.assert_close(theirs(inputs).logits, ours, rtol=0, atol=1e-5 * max(1.0, scale))


def test_a_resumed_run_neither_needs_nor_reads_the_files(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    saved_model("llama", tmp_path / "llama")
    adam = {"kind": "adamw", "lr": 1e-2}
    whole, cut = (recipe_from(tmp_path, "llama", run=run, optimizer=adam) for run in ("whole", "cut"))
    train_in_processes(tmp_path / "first", 1, [(whole, None), (cut, 4)])
    shutil.rmtree(tmp_path / "llama")
    preflight(cut.model_copy(update={"workers": whole.workers.model_copy(update={"count": 1})}), lambda _: None)
    train_in_processes(tmp_path / "second", 1, [(cut, None)])
    assert history(whole) == history(cut)
    assert digests(whole, 10) == digests(cut, 10)
    assert len(events(cut, "initialised")) == 1


def test_half_precision_files_are_taken_exactly_and_given_back_exactly(tmp_path: Path) -> None:
    model = saved_model("llama", tmp_path / "fp32").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "llama")
    module = filled(recipe_from(tmp_path, "llama"), 257)
    assert torch.equal(module.model.embed.weight.to(torch.bfloat16), model.model.embed_tokens.weight)


def test_a_model_saved_without_its_head_or_a_lone_file_fits_too(tmp_path: Path) -> None:
    model = saved_model("gpt2", tmp_path / "whole")
    GPT2Model.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "gpt2")
    assert "wte.weight" in load_file(tmp_path / "gpt2" / "model.safetensors")
    (tmp_path / "lone").mkdir()
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path / "lone" / "weights.safetensors")
    lone = str(tmp_path / "lone" / "weights.safetensors")
    for recipe in (recipe_from(tmp_path, "gpt2"), recipe_from(tmp_path, "gpt2", model={"init_from": lone})):
        check_initial_weights(recipe)
        assert torch.equal(filled(recipe, 257).model.embed.weight, model.transformer.wte.weight)


def problems(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        check_initial_weights(recipe)
    return str(caught.value)


def test_every_difference_is_named_with_what_was_found_and_expected(tmp_path: Path) -> None:
    saved_model("llama", tmp_path / "llama")
    model = {"layers": 3, "rope_base": 1e6, "context": 4096, "tie_embeddings": False, "bias": True}
    assert problems(recipe_from(tmp_path, "llama", model=model)).splitlines()[1:] == [
        "tie_word_embeddings: found True, expected False",
        "attention_bias: found False, expected True",
        "mlp_bias: found False, expected True",
        "num_hidden_layers: found 2, expected 3",
        "max_position_embeddings: found 2048, expected 4096 (model.context) or more",
        "rope_theta: found 5000.0, expected 1000000.0",
    ]
    gpt2 = recipe_from(tmp_path, "gpt2", model={"init_from": str(tmp_path / "llama")})
    assert problems(gpt2).endswith("model_type: found llama, expected gpt2")


def test_tensors_of_a_lone_file_are_compared_by_name_shape_and_kind(tmp_path: Path) -> None:
    saved_model("llama", tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(31)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(128, 32, dtype=torch.int8)
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "odd.safetensors")
    found = problems(recipe_from(tmp_path, "llama", model={"init_from": str(tmp_path / "odd.safetensors")}))
    assert set(found.splitlines()[1:]) == {
        "tensor model.norm.weight: found shape (31,), expected (32,)",
        "tensor model.layers.1.mlp.up_proj.weight: found I8, expected one of F64, F32, F16, BF16",
        "tensor model.layers.0.mlp.up_proj.weight: not found, expected shape (128, 32)",
        "tensor model.layers.2.mlp.up_proj.weight: found, not expected",
    }


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_refused_under_any_name_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    (tmp_path / "llama" / name).write_bytes(pickle.dumps(_Trap()))
    found = problems(recipe_from(tmp_path, "llama"))
    assert str(tmp_path / "llama" / name) in found
    assert ("is a pickle" if name.endswith("bin") else "is no whole safetensors file") in found
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: next(folder.glob("model-00002*")).unlink(), "lacks model-00002-of-"),
        (lambda folder: _cut(next(folder.glob("model-00002*"))), "its header says"),
    ],
)
def test_what_is_missing_or_cut_is_named(tmp_path: Path, spoil: Any, told: str) -> None:
    saved_model("llama", tmp_path / "llama", max_shard_size="40KB")
    recipe = recipe_from(tmp_path, "llama")
    check_initial_weights(recipe)
    spoil(tmp_path / "llama")
    assert told in problems(recipe)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_bias_that_is_not_zero_or_a_head_that_is_not_the_embedding_is_refused(tmp_path: Path) -> None:
    saved_model("gpt2", tmp_path / "gpt2")
    unbiased = recipe_from(tmp_path, "gpt2", model={"bias": False})
    check_initial_weights(unbiased)
    with pytest.raises(RecipeError, match=r"transformer.h.0.ln_1.bias .* is not zero, and model.bias is false"):
        filled(unbiased, 257)
    path = tmp_path / "gpt2" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + 1}, path)
    with pytest.raises(RecipeError, match=r"lm_head.weight .* differs from the embedding"):
        filled(recipe_from(tmp_path, "gpt2"), 257)
