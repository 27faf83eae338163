"""Gpt under Hugging Face's names: the configuration and the place of every tensor."""

from collections.abc import Iterator
from typing import Any

from configs.sections.model_section import GptModel
from trainer.huggingface.families import GPT2, Family, family_of
from trainer.huggingface.tensor_map import Architecture, TensorMapping, bias, linear
from trainer.models.gpt import mlp_width

NORM_EPS = 1e-5  # of trainer.models.gpt


def gpt_architecture(config: GptModel, vocab: int) -> Architecture:
    """Raises ExportError where no class of theirs computes the same."""
    family = family_of(config)
    is_gpt2 = family is GPT2
    shared = {
        "vocab_size": vocab,
        family.activation_key: family.activation,
        family.eps_key: NORM_EPS,
        "tie_word_embeddings": config.tie_embeddings,
        **dict.fromkeys(family.bias_keys, config.bias),
        **family.fixed,
    }
    return Architecture(
        family.class_name,
        family.model_type,
        config={**shared, **(_gpt2_config(config) if is_gpt2 else _rope_config(config))},
        defaults=family.defaults,
        base_prefix="transformer." if is_gpt2 else "model.",
        mappings=tuple(_gpt2_mappings(config, vocab) if is_gpt2 else _rope_mappings(family, config, vocab)),
    )


def _gpt2_config(config: GptModel) -> dict[str, Any]:
    return {
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": mlp_width(config),
    }


def _rope_config(config: GptModel) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": mlp_width(config),
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.width // config.heads,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_base,
        "rope_type": "default",
        "partial_rotary_factor": 1.0,
    }


def _rope_mappings(family: Family, config: GptModel, vocab: int) -> Iterator[TensorMapping]:
    """Separate projections of queries, keys and values, which are rows of our one; the layers that Llama named."""
    width, head_width = config.width, config.width // config.heads
    kv_width = head_width * (config.kv_heads or config.heads)
    yield linear("model.embed_tokens", "model.embed", (vocab, width))
    for i in range(config.layers):
        theirs, ours = f"model.layers.{i}", f"model.blocks.{i}"
        yield from _norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm", family, config)
        row = 0  # of our one projection, where queries, then keys, then values lie below one another
        for name, rows in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
            yield linear(f"{theirs}.self_attn.{name}", f"{ours}.attention.qkv", (rows, width), first_row=row)
            if config.bias:
                yield bias(f"{theirs}.self_attn.{name}", f"{ours}.attention.qkv", rows, first_row=row, is_ours=True)
            row += rows
        layers = [("self_attn.o_proj", "attention.out", (width, width))]
        layers += [(f"mlp.{family.mlp[n]}", f"mlp.{n}", _mlp_shape(n, config)) for n in family.mlp]
        for their_name, our_name, shape in layers:
            yield linear(f"{theirs}.{their_name}", f"{ours}.{our_name}", shape)
            if config.bias:
                yield bias(f"{theirs}.{their_name}", f"{ours}.{our_name}", shape[0], is_ours=True)
        yield from _norm(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", family, config)
    yield from _norm("model.norm", "model.norm", family, config)
    if not config.tie_embeddings:  # a tied head is the embedding itself, in our file and in theirs
        yield linear("lm_head", "model.head", (vocab, width))


def _gpt2_mappings(config: GptModel, vocab: int) -> Iterator[TensorMapping]:
    """Weights (inputs, outputs) instead of (outputs, inputs), and a bias everywhere: zero where ours has none."""
    width = config.width
    yield linear("transformer.wte", "model.embed", (vocab, width))
    yield linear("transformer.wpe", "model.positions", (config.context, width))
    for i in range(config.layers):
        theirs, ours = f"transformer.h.{i}", f"model.blocks.{i}"
        yield from _norm(f"{theirs}.ln_1", f"{ours}.attention_norm", GPT2, config)
        yield from _norm(f"{theirs}.ln_2", f"{ours}.mlp_norm", GPT2, config)
        layers = [
            ("attn.c_attn", "attention.qkv", (3 * width, width)),
            ("attn.c_proj", "attention.out", (width, width)),
        ]
        layers += [(f"mlp.{their_name}", f"mlp.{n}", _mlp_shape(n, config)) for n, their_name in GPT2.mlp.items()]
        for their_name, our_name, shape in layers:
            yield linear(f"{theirs}.{their_name}", f"{ours}.{our_name}", shape, transposed=True)
            yield bias(f"{theirs}.{their_name}", f"{ours}.{our_name}", shape[0], is_ours=config.bias)
    yield from _norm("transformer.ln_f", "model.norm", GPT2, config)
    if not config.tie_embeddings:
        yield linear("lm_head", "model.head", (vocab, width))


def _mlp_shape(name: str, config: GptModel) -> tuple[int, int]:
    hidden = mlp_width(config)
    return (config.width, hidden) if name == "down" else (hidden, config.width)


def _norm(theirs: str, ours: str, family: Family, config: GptModel) -> Iterator[TensorMapping]:
    yield linear(theirs, ours, (config.width,))
    if family.has_norm_bias:
        yield bias(theirs, ours, config.width, is_ours=config.bias)
