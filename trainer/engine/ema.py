"""An exponential moving average of the weights, kept in fp32 beside each rank's master fragments."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs.errors import CheckpointError, EngineError
from trainer.engine.engine_protocol import ReadState
from trainer.engine.zero_layout import ParameterPiece, ZeroLayout

__all__ = ["EMA_BUFFER_PREFIX", "EMA_KIND"]


EMA_KIND = "ema"
EMA_BUFFER_PREFIX = "ema/"
_SWAP_ELEMENTS = 1 << 22


def decay_at(update: int, decay: float) -> float:
    """Of the n-th update, n from 1: min(decay, (1 + n)/(10 + n)), as TensorFlow's ExponentialMovingAverage.

    A short average at first: the initial weights are forgotten after some ten steps, without a bias to correct.
    """
    return min(decay, (1 + update) / (10 + update))


class EmaWeights:
    """Averages of the masters in `layout` and of the running statistics in `buffers` (both live, both fp32).

    BatchNorm's statistics are averaged too: those of the last weights would not fit the averaged ones.
    """

    def __init__(self, layout: ZeroLayout, buffers: dict[str, torch.Tensor], decay: float) -> None:
        self.updates = 0
        self._layout, self._live, self._decay = layout, buffers, decay
        flats = {id(piece.flat): piece.flat for piece in layout.pieces}
        # Keyed by the tensor itself: an engine that puts another in its place is noticed.
        self._averages = {flat: flat.detach().clone() for flat in flats.values()}
        self._buffers = {name: value.clone() for name, value in buffers.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step that was not skipped. Local: each rank averages its own masters."""
        self.updates += 1
        weight = 1.0 - decay_at(self.updates, self._decay)
        pairs = self._pairs()
        # All in one call: on a GPU a launch for each tensor would take longer than its arithmetic.
        torch._foreach_lerp_([average for _, average in pairs], [live for live, _ in pairs], weight)

    def of(self, piece: ParameterPiece) -> torch.Tensor:
        """The average of the piece's elements: a 1-D view. Raises EngineError where the engine replaced its masters."""
        if piece.flat not in self._averages:
            raise EngineError(
                f"DeepSpeed moved the fp32 weights of {piece.parameter} during training: "
                "use the versions of constraints.txt, or leave out the section ema"
            )
        return piece.of(self._averages[piece.flat])

    def buffers(self) -> dict[str, torch.Tensor]:
        """The averaged statistics, under the names that checkpoints have for them."""
        return {EMA_BUFFER_PREFIX + name: value for name, value in self._buffers.items()}

    def load(self, read: ReadState, updates: int) -> None:
        """Take over this rank's part of a stored average; `buffers` are loaded by name, with all others.

        Raises CheckpointError when the checkpoint has none.
        """
        for piece in self._layout.pieces:
            stored = read(EMA_KIND, piece.parameter)
            if stored is None:
                raise CheckpointError(
                    f"the checkpoint has no averaged weights of {piece.parameter}: it was made without the section ema"
                )
            self.of(piece).copy_(stored(piece.start, piece.start + piece.count))
        self.updates = updates

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model computes with the average inside, and with its own weights, the same bits, afterwards.

        Called on every rank: the weights are gathered anew. Needs no memory beyond a few MB.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for live, average in self._pairs():
            for ours, theirs in zip(*(torch.split(t.view(-1), _SWAP_ELEMENTS) for t in (live, average)), strict=True):
                kept = ours.clone()  # of _SWAP_ELEMENTS at the most: a copy of all would double the average's memory
                ours.copy_(theirs)
                theirs.copy_(kept)
        self._layout.refresh()  # or the model would go on computing with what its half-precision copies hold

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        weights = [(flat.detach(), average) for flat, average in self._averages.items()]
        return weights + [(self._live[name], average) for name, average in self._buffers.items()]
