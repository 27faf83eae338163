"""An exported folder is what Hugging Face's own classes load, with the same logits; and it is whole or absent."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer
from typer.testing import CliRunner

from configs.errors import CheckpointError, ExportError
from configs.recipe import Recipe
from data.images.codecs import EIGHTHS
from data.images.crops import centre_crop
from data.images.resize import write_crop
from tests.support.training.runs import run_folder_of, train_in_processes, write_image_shards, write_text_shards
from tests.support.training.tiny_huggingface import (
    GPTS,
    RESNETS,
    checkpoint_of,
    gpt_recipe,
    resnet_recipe,
    stored_model,
)
from trainer.checkpoint.safetensors_file import read_header
from trainer.cli import app
from trainer.huggingface.config_files import auxiliary_files
from trainer.huggingface.export import ExportOptions, export

STEP = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """Runs of three steps on two workers, one per class, over the ZeRO stages; by name."""
    folder = tmp_path_factory.mktemp("export")
    write_text_shards(folder / "text")
    write_image_shards(folder / "image")
    recipes = {}
    for i, name in enumerate(GPTS):
        recipes[name] = gpt_recipe(folder / "text", name, zero={"stage": 3 - i % 4}, ema={"decay": 0.9})
    for i, name in enumerate(RESNETS):
        recipes[name] = resnet_recipe(folder / "image", name, zero={"stage": 1 + i}, ema={"decay": 0.9})
    train_in_processes(folder / "store", 2, [(recipe, STEP) for recipe in recipes.values()])
    return recipes


def exported(recipe: Recipe, out: Path, **how: object) -> Path:
    export(recipe, *checkpoint_of(recipe, STEP), out, ExportOptions(**how))  # type: ignore[arg-type]
    return out


@torch.no_grad()
@pytest.mark.parametrize("ema", [False, True], ids=["last", "ema"])
@pytest.mark.parametrize("name", GPTS)
def test_their_language_model_computes_our_logits(
    trained: dict[str, Recipe], tmp_path: Path, name: str, ema: bool
) -> None:
    recipe = trained[name]
    out = exported(recipe, tmp_path / "out", ema=ema)
    theirs, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    tokens_BT = torch.from_numpy(np.random.default_rng(7).integers(0, 257, (4, 16)))
    ours_BTV = stored_model(recipe, STEP, ema=ema).model(tokens_BT)
    assert ours_BTV.std() > 0.05
    torch.testing.assert_close(theirs.eval()(tokens_BT).logits, ours_BTV, rtol=0, atol=1e-5)
    assert theirs.generation_config.eos_token_id == 256


@torch.no_grad()
@pytest.mark.parametrize("ema", [False, True], ids=["last", "ema"])
@pytest.mark.parametrize("name", RESNETS)
def test_their_image_classifier_computes_our_logits(
    trained: dict[str, Recipe], tmp_path: Path, name: str, ema: bool
) -> None:
    recipe = trained[name]
    out = exported(recipe, tmp_path / "out", ema=ema)
    theirs, info = AutoModelForImageClassification.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    images_BCHW = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    ours_BC = stored_model(recipe, STEP, ema=ema).model(images_BCHW)
    assert ours_BC.std() > 0.01
    torch.testing.assert_close(theirs.eval()(images_BCHW).logits, ours_BC, rtol=1e-5, atol=1e-5)


def test_several_files_hold_the_same_tensors_as_one(trained: dict[str, Recipe], tmp_path: Path) -> None:
    recipe = trained["gpt2"]
    one, many = exported(recipe, tmp_path / "one"), exported(recipe, tmp_path / "many", shard_bytes=30_000)
    files = sorted(many.glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 40_000 for file in files[1:])
    loaded = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, many)]
    assert loaded[0].keys() == loaded[1].keys()
    assert all(torch.equal(value, loaded[1][name]) for name, value in loaded[0].items())
    index = json.loads((many / "model.safetensors.index.json").read_bytes())
    headers = {name: info for file in files for name, info in read_header(file).items()}
    assert headers == read_header(one / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(info.bytes for info in headers.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_rounded_weight(trained: dict[str, Recipe], tmp_path: Path, dtype: torch.dtype) -> None:
    recipe = trained["llama"]
    theirs = AutoModelForCausalLM.from_pretrained(exported(recipe, tmp_path / "out", dtype=dtype))
    embedding = stored_model(recipe, STEP).model.embed.weight
    assert theirs.dtype == dtype
    assert torch.equal(theirs.model.embed_tokens.weight, embedding.to(dtype))


def test_the_command_writes_the_folder_and_names_what_hinders_it(trained: dict[str, Recipe], tmp_path: Path) -> None:
    run, out = run_folder_of(trained["llama"]), tmp_path / "deep" / "out"
    result = CliRunner().invoke(app, ["checkpoint", "export", str(run), str(out), "--dtype", "bf16", "--ema"])
    assert result.exit_code == 0, result.output
    assert "model.safetensors" in result.output
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    with pytest.raises(ExportError, match="exists"):
        CliRunner().invoke(app, ["checkpoint", "export", str(run), str(out)], catch_exceptions=False)
    result = CliRunner().invoke(app, ["checkpoint", "export", str(run), str(tmp_path / "x"), "--step", "2"])
    assert "no checkpoint of step 2: choose from 3" in str(result.exception)


def test_a_damaged_checkpoint_is_not_exported(trained: dict[str, Recipe], tmp_path: Path) -> None:
    run = run_folder_of(trained["stablelm"])
    victim = next((run / "checkpoints" / "step-00000003").glob("*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    original, _ = victim.read_bytes(), victim.write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match=victim.name):
            CliRunner().invoke(app, ["checkpoint", "export", str(run), str(tmp_path / "out")], catch_exceptions=False)
    finally:
        victim.write_bytes(original)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_half_way_leaves_nothing(trained: dict[str, Recipe], tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ExportError, match="cannot be written: File too large"):
            exported(trained["llama"], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_weights_without_an_average_are_named(trained: dict[str, Recipe], tmp_path: Path) -> None:
    folder, manifest = checkpoint_of(trained["llama"], STEP)
    manifest.fragments[:] = [fragment for fragment in manifest.fragments if fragment.kind != "ema"]
    with pytest.raises(ExportError, match="no averaged weights: leave out --ema"):
        export(trained["llama"], folder, manifest, tmp_path / "out", ExportOptions(ema=True))


def test_an_architecture_that_no_class_has_is_refused_with_what_each_would_need(
    trained: dict[str, Recipe], tmp_path: Path
) -> None:
    recipe = gpt_recipe(tmp_path, "gpt2", model={"norm": "rmsnorm"})
    with pytest.raises(ExportError, match=r"GPT2LMHeadModel needs norm layernorm \(is rmsnorm\);") as caught:
        export(recipe, *checkpoint_of(trained["gpt2"], STEP), tmp_path / "out", ExportOptions())
    assert "LlamaForCausalLM needs positions rope (is learned), activation swiglu (is gelu)" in str(caught.value)
    small = resnet_recipe(tmp_path, "resnet18", model={"stem": "small"})
    with pytest.raises(ExportError, match=r"stem imagenet \(is small\)"):
        export(small, *checkpoint_of(trained["resnet18"], STEP), tmp_path / "out", ExportOptions())


def test_a_weight_beyond_half_precision_is_named(trained: dict[str, Recipe], tmp_path: Path) -> None:
    from trainer.huggingface import export as module

    recipe = trained["llama"]
    folder, manifest = checkpoint_of(recipe, STEP)
    with module.CheckpointReader(folder, manifest) as reader:
        mapping = next(iter(module.architecture(recipe.model, 257).mappings))
        real = reader.read
        reader.read = lambda kind, name: lambda a, b: 1e5 * torch.ones_like(real(kind, name)(a, b))  # type: ignore
        with pytest.raises(ExportError, match=r"model.embed.weight has a weight of 1e\+05, beyond fp16"):
            module._read(mapping, reader, {}, ExportOptions(dtype=torch.float16))


def test_their_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    vocab = {"<|endoftext|>": 0, "stokers": 1, "shovel": 2, "coal": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    data = {"kind": "text", "tokenizer": str(tmp_path / "words.json"), "train": {"shards": "x.tar"}}
    recipe = gpt_recipe(tmp_path, "llama", data=data)
    out = tmp_path / "out"
    out.mkdir()
    for name, content in auxiliary_files(recipe).items():
        (out / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs("stokers shovel coal")["input_ids"] == [1, 2, 3]
    assert (theirs.eos_token_id, theirs.model_max_length) == (0, 16)
    assert json.loads((out / "generation_config.json").read_bytes())["eos_token_id"] == 0


def test_their_preprocessing_gives_our_pixels(trained: dict[str, Recipe], tmp_path: Path) -> None:
    recipe = trained["resnet18"]
    processor = AutoImageProcessor.from_pretrained(exported(recipe, tmp_path / "out"), use_fast=False)
    pixels_HWC = np.random.default_rng(7).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    theirs = processor(Image.fromarray(pixels_HWC), return_tensors="pt")["pixel_values"]
    row_HWC = np.zeros((64, 64, 3), np.uint8)
    write_crop(pixels_HWC, EIGHTHS, centre_crop(90, 120, 64), row_HWC)
    ours = stored_model(recipe, STEP).normalise(torch.from_numpy(row_HWC)[None])
    assert theirs.shape == ours.shape
    # A pixel's rounding and where the centre of an odd margin lies are theirs to choose.
    assert (theirs - ours).abs().mean() < 0.02
