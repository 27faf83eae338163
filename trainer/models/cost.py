"""What a model costs to train: floating-point operations and activation memory, without allocating anything."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from configs.sections.model_section import GptModel
from trainer.models.gpt import Gpt, mlp_width
from trainer.models.resnet import Resnet

__all__ = [
    "gpt_activation_bytes",
    "gpt_flops_per_token",
    "resnet_activation_bytes",
    "resnet_flops_per_image",
    "shapes_only",
]


_FP32_BYTES = 4


class _SkipInitialisation(TorchFunctionMode):
    """Leaves new parameters as they are: drawing on the meta device would import torch's compiler (2.5 s)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built inside have parameters without memory or values."""
    with torch.device("meta"), _SkipInitialisation():
        yield


def gpt_flops_per_token(model: Gpt) -> float:
    """Forward and backward: 6N + 12·layers·width·context (Chowdhery et al. 2022, PaLM, appendix B).

    N leaves out tables that are only looked up. As in PaLM, attention counts in full although half is masked, or more
    where a row holds several documents: the kernels work those scores out too.
    Count before ZeRO-3 takes the parameters apart.
    """
    looked_up = [] if model.config.tie_embeddings else [model.embed]
    looked_up += [] if model.positions is None else [model.positions]
    parameters = sum(p.numel() for p in model.parameters()) - sum(table.weight.numel() for table in looked_up)
    return 6.0 * parameters + 12.0 * model.config.layers * model.config.width * model.config.context


def gpt_activation_bytes(
    config: GptModel, vocab: int, rows: int, element_bytes: int, document_mask: bool = False
) -> int:
    """An estimate of what backward keeps for `rows` full rows, and of the loss's gradient.

    Counted per layer as Korthikanti et al. 2022, section 4.1, without the attention matrix, which the fused kernel
    recomputes; for GPT-2's layer this is their 34·width bytes per token (32 without dropout) in half precision.
    With `document_mask` the layers share one mask of rows·context² elements.
    On the host RMSNorm is not fused and keeps some fp32 copies more.
    """
    tokens = rows * config.context
    layer_bytes = _gpt_layer_bytes_per_token(config, element_bytes)
    residual_bytes = config.width * element_bytes
    kept_bytes = config.layers * layer_bytes  # a checkpointed layer keeps its input, and one at a time is recomputed
    if config.checkpoint_activations:
        kept_bytes = config.layers * residual_bytes + layer_bytes
    # Log-probabilities and their gradient are fp32; final norm and head keep their inputs.
    loss_bytes = 2 * vocab * _FP32_BYTES + 2 * residual_bytes
    mask_bytes = config.context * element_bytes if document_mask else 0
    return tokens * (kept_bytes + loss_bytes + mask_bytes)


def _gpt_layer_bytes_per_token(config: GptModel, element_bytes: int) -> int:
    width, hidden = config.width, mlp_width(config)
    kv_width = width // config.heads * (config.kv_heads or config.heads)
    # Inputs of both norms and of the projections; queries, keys, values; the attention's output.
    elements = 2 * width + width + (width + 2 * kv_width) + width
    if config.positions == "rope":
        elements += width + kv_width  # the values' storage holds the unrotated queries and keys too
    elements += width + (4 if config.activation == "swiglu" else 2) * hidden
    masks = 2 * width if config.dropout else 0
    return elements * element_bytes + masks + config.heads * _FP32_BYTES


class _Convolution(NamedTuple):
    module: nn.Conv2d
    side: int  # of its square output, in pixels
    is_shortcut: bool


def resnet_flops_per_image(model: Resnet, size: int) -> float:
    """Forward and backward of one size×size image: 2 operations per multiply-add of convolutions and classifier.

    Backward costs twice the forward, but no gradient flows into the image.
    """
    first, *others = (2.0 * c.module.weight.numel() * c.side**2 for c in _convolutions(model, size))
    return 2 * first + 3 * (sum(others) + 2.0 * model.fc.weight.numel())


def resnet_activation_bytes(model: Resnet, size: int, images: int, element_bytes: int) -> int:
    """An estimate of what backward keeps for `images` images: the inputs of convolutions, norms and pooling."""
    convolutions = _convolutions(model, size)
    stem = convolutions[0]
    elements = stem.module.in_channels * size**2
    for convolution in convolutions:
        # Kept before the norm and after the ReLU, which works in place; a shortcut has no ReLU, and sums keep nothing.
        copies = 1 if convolution.is_shortcut else 2
        elements += copies * convolution.module.out_channels * convolution.side**2
    pooled = stem.module.out_channels * _halved(stem.side) ** 2 if model.config.stem == "imagenet" else 0
    return images * ((elements + pooled) * element_bytes + pooled * torch.int64.itemsize)


def _convolutions(model: Resnet, size: int) -> list[_Convolution]:
    has_pooling = model.config.stem == "imagenet"
    side = _halved(size) if has_pooling else size
    found = [_Convolution(model.conv1, side, is_shortcut=False)]
    side = _halved(side) if has_pooling else side
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or module is model.conv1:
            continue
        is_shortcut = ".downsample." in name
        # A block's shortcut comes last and ends at the size that its main path has reached.
        if module.stride[0] == 2 and not is_shortcut:
            side = _halved(side)
        found.append(_Convolution(module, side, is_shortcut))
    return found


def _halved(side: int) -> int:
    return -(-side // 2)
