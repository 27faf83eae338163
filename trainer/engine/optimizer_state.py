"""Optimizer state as element-wise tensors plus per-group scalars, for torch's optimizers on any layout."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from configs.errors import CheckpointError, EngineError
from trainer.engine.engine_protocol import ReadSlice, ReadState
from trainer.engine.zero_layout import ParameterPiece, ZeroLayout

_ELEMENTWISE = {
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "SGD": ("momentum_buffer",),
    "RMSprop": ("square_avg", "momentum_buffer"),
}
_HYPERPARAMETERS = ("lr", "betas", "alpha", "eps", "weight_decay", "momentum", "dampening", "nesterov")


def group_scalars(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Each group's hyper-parameters and, after the first step of Adam, `step`: its number of updates.

    Raises EngineError when parameters took different numbers of steps.
    """
    steps = {float(state["step"]) for state in optimizer.state.values() if "step" in state}
    if len(steps) > 1:
        raise EngineError(f"parameters took different numbers of optimizer steps: {sorted(steps)}")
    updates: dict[str, Any] = {"step": steps.pop()} if steps else {}
    return {
        group["name"]: {key: group[key] for key in _HYPERPARAMETERS if key in group} | updates
        for group in optimizer.param_groups
    }


def restore_groups(optimizer: torch.optim.Optimizer, scalars: dict[str, dict[str, Any]]) -> None:
    """Set the stored hyper-parameters of each group, by its name. Raises CheckpointError when the groups are others."""
    names = [group["name"] for group in optimizer.param_groups]
    if sorted(names) != sorted(scalars):
        raise CheckpointError(f"the checkpoint has the parameter groups {sorted(scalars)}, the model {sorted(names)}")
    for group in optimizer.param_groups:
        group |= {key: value for key, value in scalars[group["name"]].items() if key in _HYPERPARAMETERS}


def restore_state(layout: ZeroLayout, read: ReadState, scalars: dict[str, dict[str, Any]]) -> None:
    """Fill this rank's masters and rebuild the optimizer's state as the optimizer itself would have made it.

    `scalars`: as `group_scalars`. Raises CheckpointError when a master is not stored. `layout.refresh` is to follow.
    """
    optimizer = layout.base_optimizer
    before = dict(optimizer.state)  # its tensors are filled again where they fit: new ones would double the memory
    optimizer.state.clear()
    kinds = _ELEMENTWISE[type(optimizer).__name__]
    for piece in layout.pieces:
        stop = piece.start + piece.count
        piece.of(piece.flat).copy_(_reader(read, "master", piece.parameter)(piece.start, stop))
        for kind in kinds:
            stored = read(kind, piece.parameter)
            if stored is not None:  # none before the first step: the optimizer makes its state at that step
                state = optimizer.state[piece.flat]
                if kind not in state:
                    # Zeroing all of it would cost a pass over memory; what no piece covers is padding.
                    kept = before.get(piece.flat, {}).get(kind)
                    state[kind] = torch.empty_like(piece.flat.detach()) if kept is None else kept
                    _zero_padding(state[kind], [p for p in layout.pieces if p.flat is piece.flat])
                piece.of(state[kind]).copy_(stored(piece.start, stop))
    for step in {group["step"] for group in scalars.values() if "step" in group}:  # `group_scalars`: there is one
        _restore_step(layout, step, kinds)


def _restore_step(layout: ZeroLayout, step: float, kinds: Sequence[str]) -> None:
    """A rank's share of a group may be padding alone: the optimizer counts its steps like any other's."""
    states = layout.base_optimizer.state
    for flat in layout.flats:
        if flat not in states:
            states[flat] = {kind: torch.zeros_like(flat.detach()) for kind in kinds}
    for flat, state in states.items():
        # torch's fused AdamW wants its step count beside the parameter.
        state["step"] = torch.tensor(step, dtype=torch.float32, device=flat.device)


def _zero_padding(state: torch.Tensor, pieces: list[ParameterPiece]) -> None:
    if sum(piece.count for piece in pieces) < state.numel():
        flat, position = state.view(-1), 0
        for piece in sorted(pieces, key=lambda piece: piece.offset):
            flat[position : piece.offset].zero_()
            position = piece.offset + piece.count
        flat[position:].zero_()


def _reader(read: ReadState, kind: str, parameter: str) -> ReadSlice:
    reader = read(kind, parameter)
    if reader is None:
        raise CheckpointError(f"the checkpoint has no {kind} weights of {parameter}: it was made by another model")
    return reader


def first_not_finite(named: Sequence[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds an infinity or a NaN. One pass, one wait for the device."""
    filled = [(name, tensor.detach()) for name, tensor in named if tensor.numel()]
    # The largest absolute value is infinite or NaN exactly when one element is.
    largest = torch.nn.utils.get_total_norm([tensor for _, tensor in filled], math.inf)
    if bool(torch.isfinite(largest)):
        return None
    return next(name for name, tensor in filled if not bool(torch.isfinite(tensor).all()))
