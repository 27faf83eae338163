"""The two architectures: what they compute, how large they are, how they start."""

import math

import pytest
import torch
from torch import Tensor

from configs.sections.model_section import GptModel, ResnetModel
from trainer.models.cost import shapes_only
from trainer.models.gpt import Gpt, rope_tables, rotate
from trainer.models.resnet import Resnet

VOCAB = 50


def gpt(**settings: object) -> GptModel:
    return GptModel.model_validate({"kind": "gpt", "layers": 2, "heads": 4, "width": 32, "context": 16, **settings})


def build(config: GptModel, seed: int = 0) -> Gpt:
    torch.manual_seed(seed)
    return Gpt(config, VOCAB)


def some_tokens(rows: int = 2, tokens: int = 16) -> Tensor:
    return torch.randint(VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1))


VARIANTS: list[dict[str, object]] = [
    {},
    {"kv_heads": 2},
    {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True, "tie_embeddings": False},
]


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_later_token_changes_no_earlier_logit(settings: dict[str, object], dtype: torch.dtype) -> None:
    model, tokens = build(gpt(**settings)).to(dtype), some_tokens()
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert before.dtype == dtype
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(dim=2).all(), "and reaches every later one"


def test_grouped_query_attention_equals_full_attention_with_repeated_heads() -> None:
    grouped, full = build(gpt(kv_heads=2)), build(gpt(), seed=1)
    state = grouped.state_dict()
    for name in [name for name in state if name.endswith("qkv.weight")]:
        q, k, v = state[name].unflatten(0, (-1, 8)).split([4, 2, 2])
        state[name] = torch.cat((q, k.repeat_interleave(2, dim=0), v.repeat_interleave(2, dim=0))).flatten(0, 1)
    full.load_state_dict(state)
    torch.testing.assert_close(full(some_tokens()), grouped(some_tokens()))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    q_D, k_D = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    rope = rope_tables(64, 16, 10000.0, torch.device("cpu"))
    q_TD, k_TD = (rotate(x.expand(1, 1, 64, 16), rope)[0, 0] for x in (q_D, k_D))
    products = [torch.stack([q_TD[m] @ k_TD[m - distance] for m in range(distance, 64)]) for distance in (0, 5, 30)]
    for product in products:
        torch.testing.assert_close(product, product[:1].expand_as(product), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(products[0][0], products[1][0])


def test_rope_of_a_half_precision_model_is_as_exact_as_its_numbers() -> None:
    rope = rope_tables(8192, 16, 10000.0, torch.device("cpu"))
    x = torch.randn(1, 1, 8192, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    angles = torch.arange(8192).double()[:, None] * 10000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    turned = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        rotate(x, rope).double(), torch.cat((turned.real, turned.imag), dim=-1), rtol=2**-8, atol=2e-3
    )


def test_tied_embeddings_are_one_tensor_even_after_a_cast() -> None:
    model = build(gpt()).bfloat16()
    assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()
    assert len([p for p in model.parameters() if p.shape == (VOCAB, 32)]) == 1
    untied = build(gpt(tie_embeddings=False))
    assert untied.head.weight.data_ptr() != untied.embed.weight.data_ptr()


def test_gpt2_small_has_its_published_size() -> None:
    config = gpt(
        layers=12,
        heads=12,
        width=768,
        context=1024,
        positions="learned",
        norm="layernorm",
        activation="gelu",
        bias=True,
    )
    with shapes_only():
        model = Gpt(config, vocab=50257)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_weights_start_with_the_recipe_s_deviation_and_residual_projections_smaller() -> None:
    model = build(gpt(layers=8, width=128, init_std=0.03, bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            assert parameter.std().item() == pytest.approx(0.03 / math.sqrt(16), rel=0.05), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.03, rel=0.05), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


def test_recomputed_activations_give_the_same_gradients_under_dropout() -> None:
    gradients = []
    for recompute in (False, True):
        model = build(gpt(dropout=0.3, checkpoint_activations=recompute))
        torch.manual_seed(5)
        model(some_tokens()).logsumexp(dim=2).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only() -> None:
    model, tokens = build(gpt(dropout=0.3)), some_tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def three_documents() -> Tensor:
    """And two blanks."""
    return torch.tensor([[0] * 5 + [1] * 1 + [2] * 8 + [-1] * 2])


@pytest.mark.parametrize(
    "settings", [*VARIANTS, {"positions": "learned", "kv_heads": 1, "checkpoint_activations": True}]
)
def test_a_document_of_a_packed_row_gets_the_logits_and_gradients_it_gets_alone(settings: dict[str, object]) -> None:
    model, tokens, documents = build(gpt(**settings)), some_tokens(rows=1), three_documents()
    pieces = [tokens[documents == number][None] for number in (0, 1, 2, -1)]
    packed, alone = model(tokens, documents), torch.cat([model(piece) for piece in pieces], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2))
    gradients = []
    for logits in (packed, alone):
        model.zero_grad()
        (logits * weights).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for together, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(packed, model(tokens), atol=1e-2), "and as one text it gets others"


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_document_of_the_row_changes_no_bit(settings: dict[str, object], dtype: torch.dtype) -> None:
    model, tokens = build(gpt(**settings)).to(dtype), some_tokens(rows=1)
    documents = three_documents()
    changed = torch.where(documents == 1, (tokens + 1) % VOCAB, tokens)
    before, after = model(tokens, documents), model(changed, documents)
    assert torch.equal(before[documents != 1], after[documents != 1])
    assert (before[documents == 1] != after[documents == 1]).any()
    assert before.isfinite().all(), "of blanks too"


def test_a_row_of_one_document_gets_what_it_gets_without_documents() -> None:
    model, tokens = build(gpt()), some_tokens()
    torch.testing.assert_close(model(tokens, torch.zeros_like(tokens)), model(tokens))


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match=r"17 tokens in a row, but model\.context is 16"):
        build(gpt())(some_tokens(tokens=17))


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_resnets_have_their_published_sizes(depth: int, parameters: int) -> None:
    with shapes_only():
        model = Resnet(ResnetModel.model_validate({"kind": "resnet", "depth": depth, "classes": 1000}), channels=3)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("small", 8)])
def test_the_stem_decides_what_the_last_stage_sees(stem: str, side: int) -> None:
    config = ResnetModel.model_validate({"kind": "resnet", "classes": 7, "width": 4, "stem": stem})
    model = Resnet(config, channels=1)
    shapes = []
    model.get_submodule("layer4").register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert shapes == [(2, 32, side, side)]


def test_zero_initialised_residual_blocks_pass_their_input_through() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for zero_init in (True, False):
        config = {"kind": "resnet", "depth": 50, "classes": 5, "width": 4, "zero_init_residual": zero_init}
        block = Resnet(ResnetModel.model_validate(config), channels=3).get_submodule("layer1.1")
        x_BCHW = images.abs().mean(1, keepdim=True).expand(4, 16, 8, 8)
        assert torch.equal(block(x_BCHW), x_BCHW) == zero_init
