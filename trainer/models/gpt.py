"""Decoder-only Transformer (Vaswani et al. 2017; Radford et al. 2019), pre-norm, with the recipe's variants.

Letters in names: B rows, T tokens, W width (model dimension), H heads, D head dimension, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from configs.sections.model_section import GptModel

__all__ = ["Gpt", "mlp_width"]


Rope = tuple[Tensor, Tensor]


class Gpt(nn.Module):
    """Language model of the recipe's `model` section: tokens_BT (int64) -> logits_BTV.

    With documents_BT (int64, one number per document, neighbours differ) each document of a row is seen as if it were
    alone. Without, a row is one text.
    """

    def __init__(self, config: GptModel, vocab: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(vocab, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.width, vocab, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight  # before _initialise, which draws it as an embedding and as a head
        self._initialise()

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Logits of each token's successor. Raises ValueError for more than `context` tokens."""
        tokens = tokens_BT.shape[1]
        if tokens > self.config.context:
            raise ValueError(f"{tokens} tokens in a row, but model.context is {self.config.context}")
        x_BTW = self.embed(tokens_BT)
        if self.positions is not None:
            places = torch.arange(tokens, device=tokens_BT.device)
            x_BTW = x_BTW + self.positions(places if documents_BT is None else positions_in_documents(documents_BT))
        rope = self._rope(tokens, tokens_BT.device)
        mask = None if documents_BT is None else document_mask(documents_BT, x_BTW.dtype)
        x_BTW = self.dropout(x_BTW)
        # Not in evaluation, where nothing is kept for backward anyway.
        recompute = self.config.checkpoint_activations and torch.is_grad_enabled()
        for block in self.blocks:
            inputs = (x_BTW, rope, mask)
            # The reentrant way would want an input that has a gradient.
            x_BTW = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        logits_BTV: Tensor = self.head(self.norm(x_BTW))
        return logits_BTV

    def _rope(self, tokens: int, device: torch.device) -> Rope | None:
        if self.config.positions != "rope":
            return None
        return rope_tables(tokens, self.config.width // self.config.heads, self.config.rope_base, device)

    def _initialise(self) -> None:
        """N(0, init_std); residual projections scaled by 1/√(2·layers) (Radford et al. 2019, section 2.3)."""
        residual_std = self.config.init_std / math.sqrt(2 * self.config.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                is_residual = name.endswith((".attention.out", ".mlp.down"))
                nn.init.normal_(module.weight, std=residual_std if is_residual else self.config.init_std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GptModel) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = Swiglu(config) if config.activation == "swiglu" else Gelu(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTW: Tensor, rope: Rope | None, mask_B1TT: Tensor | None) -> Tensor:
        """`mask_B1TT`: as `document_mask` gives it; None for plain causal attention. Same shape out."""
        x_BTW = x_BTW + self.dropout(self.attention(self.attention_norm(x_BTW), rope, mask_B1TT))
        y_BTW: Tensor = x_BTW + self.dropout(self.mlp(self.mlp_norm(x_BTW)))
        return y_BTW


class Attention(nn.Module):
    """Causal self-attention; with `kv_heads` below `heads`, groups of heads share keys (Ainslie et al. 2023)."""

    def __init__(self, config: GptModel) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.head_width = config.width // config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x_BTW: Tensor, rope: Rope | None, mask_B1TT: Tensor | None) -> Tensor:
        """`rope`: cos and sin as of `rope_tables`; `mask_B1TT` is added to the scores. Same shape out."""
        heads_BHTD = self.qkv(x_BTW).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        q_BHTD, k_BHTD, v_BHTD = heads_BHTD.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if rope is not None:
            q_BHTD, k_BHTD = rotate(q_BHTD, rope), rotate(k_BHTD, rope)
        grouped = self.kv_heads != self.heads
        if grouped and mask_B1TT is not None:
            # CUDA's kernel that takes a mask takes no groups, and torch would fall back to keeping every score.
            k_BHTD, v_BHTD = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k_BHTD, v_BHTD))
            grouped = False
        mixed_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BHTD,
            v_BHTD,
            attn_mask=mask_B1TT,
            is_causal=mask_B1TT is None,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=grouped,
        )
        y_BTW: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return y_BTW


class Gelu(nn.Module):
    """Two layers with the tanh approximation of GELU, as in GPT-2 (Hendrycks and Gimpel 2016)."""

    def __init__(self, config: GptModel) -> None:
        super().__init__()
        hidden = mlp_width(config)
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Each token by itself; same shape out."""
        y_BTW: Tensor = self.down(F.gelu(self.up(x_BTW), approximate="tanh"))
        return y_BTW


class Swiglu(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, config: GptModel) -> None:
        super().__init__()
        hidden = mlp_width(config)
        self.gate = nn.Linear(config.width, hidden, bias=config.bias)
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Each token by itself; same shape out."""
        y_BTW: Tensor = self.down(F.silu(self.gate(x_BTW)) * self.up(x_BTW))
        return y_BTW


def mlp_width(config: GptModel) -> int:
    """Hidden units of the feed-forward part: as given, else 4·width (gelu) or 8/3·width rounded up to 64 (swiglu)."""
    if config.mlp_width is not None:
        return config.mlp_width
    if config.activation == "gelu":
        return 4 * config.width
    return 64 * math.ceil(8 * config.width / (3 * 64))


def document_mask(documents_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, shape (B, 1, T, T): 0 for tokens up to a token in its document, else -inf.

    One tensor for all layers: of a boolean mask the kernels would make, and keep for backward, one of this kind each.
    """
    hidden_BTT = documents_BT[:, :, None] != documents_BT[:, None, :]
    hidden_BTT |= torch.ones_like(hidden_BTT[0]).triu(1)
    return torch.zeros_like(hidden_BTT, dtype=dtype).masked_fill_(hidden_BTT, -math.inf)[:, None]


def positions_in_documents(documents_BT: Tensor) -> Tensor:
    """The number of each token within its document (of what the row has of it), from 0."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = places_T.expand_as(documents_BT).clone()
    starts_BT[:, 1:][documents_BT[:, 1:] == documents_BT[:, :-1]] = 0
    return places_T - starts_BT.cummax(dim=1).values


def rope_tables(tokens: int, head_width: int, base: float, device: torch.device) -> Rope:
    """cos and sin of each position's angles, fp32, shape (T, D/2) (Su et al. 2021).

    Computed on each forward: as buffers they would be cast to half precision with the model.
    """
    inverse = base ** -(torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(tokens, device=device, dtype=torch.float32), inverse)
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, rope: Rope) -> Tensor:
    """Rotates the pairs (i, i + D/2) of each head by its position's angles, in fp32; same dtype out.

    Llama as transformers has it pairs them so too, and `model.init_from` relies on it.
    """
    cos, sin = rope
    first, second = x_BHTD.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BHTD.dtype)


def _norm(config: GptModel) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.width, eps=1e-5)
    return nn.LayerNorm(config.width, eps=1e-5, bias=config.bias)
