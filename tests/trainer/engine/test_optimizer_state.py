"""Optimizer state on the layouts that ZeRO makes of it."""

import torch

from trainer.engine.optimizer_state import group_scalars, restore_state
from trainer.engine.zero_layout import ParameterPiece, ZeroLayout


def step(optimizer: torch.optim.Optimizer, flats: list[torch.Tensor]) -> None:
    for flat in flats:
        flat.grad = torch.zeros_like(flat)
    optimizer.step()


def test_a_share_of_a_group_that_is_padding_alone_has_made_as_many_steps_as_the_others() -> None:
    flats = [torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)]
    groups = [{"params": [flat], "name": str(number)} for number, flat in enumerate(flats)]
    optimizer = torch.optim.AdamW(groups, fused=True)
    piece = ParameterPiece("weight", 0, 3, flats[0], 0, 0, lambda: flats[0].detach()[:3])
    layout = ZeroLayout([piece], False, optimizer, lambda: None, "a test", flats)
    scalars = {name: {"step": 5.0} for name in ("0", "1")}
    restore_state(layout, lambda kind, parameter: lambda start, stop: torch.full((stop - start,), 2.0), scalars)
    assert {group["step"] for group in group_scalars(optimizer).values()} == {5.0}
    step(optimizer, flats)
    assert {group["step"] for group in group_scalars(optimizer).values()} == {6.0}
    assert flats[1].detach().tolist() == [0.0] * 4
