"""Optimizer state as element-wise tensors plus per-group scalars, for torch's optimizers on any layout."""

import torch

from configs.errors import CheckpointError, EngineError
from trainer.engine import ReadSlice, ReadState
from trainer.zero_state import Layout

_ELEMENTWISE = {"AdamW": ("exp_avg", "exp_avg_sq"), "SGD": ("momentum_buffer",)}


def step_count(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Adam's number of updates, the same for every parameter; empty for SGD and before the first step."""
    steps = {float(state["step"]) for state in optimizer.state.values() if "step" in state}
    if len(steps) > 1:
        raise EngineError(f"parameters took different numbers of optimizer steps: {sorted(steps)}")
    return {"step": steps.pop()} if steps else {}


def restore_state(layout: Layout, read: ReadState, scalars: dict[str, float]) -> None:
    """Fill this rank's masters and rebuild the optimizer's state as the optimizer itself would have made it."""
    optimizer = layout.base_optimizer
    optimizer.state.clear()
    kinds = _ELEMENTWISE[type(optimizer).__name__]
    for piece in layout.pieces:
        stop = piece.start + piece.count
        piece.of(piece.flat).copy_(_reader(read, "master", piece.parameter)(piece.start, stop))
        for kind in kinds:
            stored = read(kind, piece.parameter)
            if stored is not None:
                state = optimizer.state[piece.flat]
                if kind not in state:
                    state[kind] = torch.zeros_like(piece.flat.detach())
                piece.of(state[kind]).copy_(stored(piece.start, stop))
    for parameter, state in optimizer.state.items():
        if "step" in scalars:
            # torch's fused AdamW wants its step count beside the parameter.
            state["step"] = torch.tensor(scalars["step"], dtype=torch.float32, device=parameter.device)


def _reader(read: ReadState, kind: str, parameter: str) -> ReadSlice:
    reader = read(kind, parameter)
    if reader is None:
        raise CheckpointError(f"the checkpoint has no {kind} weights of {parameter}: it was made by another model")
    return reader
