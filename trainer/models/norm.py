"""Batch normalisation whose running statistics move once per optimizer step, the same on any number of workers."""

from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BatchNorm2d", "commit_statistics", "pending_statistics", "set_micro_batch_weight"]


class BatchNorm2d(nn.Module):
    """Batch normalisation over a micro-batch (Ioffe and Szegedy 2015): x_BCHW -> same shape and dtype.

    In training each forward adds its mean and unbiased variance, times `micro_batch_weight`, to fp32 sums.
    The engine adds up the workers' sums (`pending_statistics`) and hands them back (`commit_statistics`), which
    moves the running statistics by the mean over the step's micro-batches. All statistics stay fp32 when the
    module is cast to half precision.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.momentum = momentum
        self.micro_batch_weight = 1.0
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._sums_2C: Tensor | None = None  # no buffer: at a step boundary, where checkpoints are made, it is None
        self._sum_of_weights = 0.0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalises by the micro-batch in training, by the running statistics in evaluation."""
        # fp32 scale and shift with half-precision activations: the pair that CPU, CUDA and cuDNN all support.
        scale, shift = self.weight.float(), self.bias.float()
        if not self.training:
            return F.batch_norm(x_BCHW, self.running_mean, self.running_var, scale, shift, eps=self.eps)
        if x_BCHW.numel() == self.channels:  # one value has no variance: it is its own mean, and moves nothing
            return ((x_BCHW - x_BCHW) * scale[:, None, None] + shift[:, None, None]).to(x_BCHW.dtype)
        # With momentum 1 the "running" statistics handed in come back as those of this micro-batch.
        batch_2C = torch.zeros(2, self.channels, device=x_BCHW.device)
        mean, var = batch_2C
        y_BCHW = F.batch_norm(x_BCHW, mean, var, scale, shift, training=True, momentum=1.0, eps=self.eps)
        self._accumulate(batch_2C)
        return y_BCHW

    def pending(self) -> Tensor:
        """Weighted sums since the last commit: fp32, 2·channels + 1 values (means, variances, sum of weights)."""
        sums_2C = self._sums_2C
        if sums_2C is None:
            sums_2C = torch.zeros(2, self.channels, device=self.running_mean.device)
        return torch.cat((sums_2C.flatten(), sums_2C.new_tensor([self._sum_of_weights])))

    def commit(self, summed: Tensor) -> None:
        """Moves the running statistics by `summed`, as `pending` gives it, added up over the workers."""
        summed = summed.to(self.running_mean.device)
        mean, var, weight = torch.split(summed, [self.channels, self.channels, 1])
        # Tensor arithmetic instead of `if weight`: no wait for the accelerator.
        momentum = self.momentum * (weight > 0)
        divisor = torch.where(weight > 0, weight, 1.0)
        self.running_mean.lerp_(mean / divisor, momentum)
        self.running_var.lerp_(var / divisor, momentum)
        self._sums_2C, self._sum_of_weights = None, 0.0

    def _accumulate(self, batch_2C: Tensor) -> None:
        # Skipped rather than added with factor 0: an empty micro-batch may hold anything, and 0 · inf is not 0.
        if self.micro_batch_weight == 0.0:
            return
        weighted_2C = batch_2C * self.micro_batch_weight
        self._sums_2C = weighted_2C if self._sums_2C is None else self._sums_2C + weighted_2C
        self._sum_of_weights += self.micro_batch_weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Seen as integers, the statistics follow moves between devices but not casts of floating-point tensors.
        statistics = {
            name: fn(buffer.view(torch.int32)).view(torch.float32) for name, buffer in self.named_buffers(recurse=False)
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(statistics)
        return self


def set_micro_batch_weight(module: nn.Module, weight: float) -> None:
    """Weight of the coming micro-batches in the statistics of every BatchNorm2d inside: its number of samples."""
    for norm in _batch_norms(module):
        norm.micro_batch_weight = weight


def pending_statistics(module: nn.Module) -> Tensor | None:
    """One flat fp32 tensor with the pending sums of every BatchNorm2d inside; None where there is none."""
    pending = [norm.pending() for norm in _batch_norms(module)]
    return torch.cat(pending) if pending else None


def commit_statistics(module: nn.Module, summed: Tensor) -> None:
    """Moves all running statistics once and clears the pending sums.

    `summed` is `pending_statistics` added up over the workers; zeros drop what is pending (a skipped step).
    """
    norms = list(_batch_norms(module))
    for norm, part in zip(norms, torch.split(summed, [2 * norm.channels + 1 for norm in norms]), strict=True):
        norm.commit(part)


def _batch_norms(module: nn.Module) -> Iterator[BatchNorm2d]:
    return (child for child in module.modules() if isinstance(child, BatchNorm2d))
