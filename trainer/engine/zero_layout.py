"""Where DeepSpeed 0.19 keeps fp32 weights and optimizer state, for each ZeRO stage and precision.

The only module that touches DeepSpeed's internals. Each layout is found by name, and a self-test compares every local
fp32 piece with the live weights, so that another DeepSpeed is refused rather than misread.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from configs.errors import EngineError


@dataclass(frozen=True)
class ParameterPiece:
    """`count` elements of `parameter` from `start` on lie in `flat` (the optimizer's own tensor) from `offset` on."""

    parameter: str
    start: int
    count: int
    flat: torch.Tensor
    offset: int
    group: int
    live: Callable[[], torch.Tensor]  # the same elements as the model uses them, maybe in half precision

    def of(self, state: torch.Tensor) -> torch.Tensor:
        """The piece's elements in a tensor laid out like `flat`: a 1-D view of the live memory."""
        return state.detach().view(-1).narrow(0, self.offset, self.count)


@dataclass(frozen=True)
class ZeroLayout:
    """This rank's pieces, and how to bring changed master weights into the model: `refresh`, on every rank at once."""

    pieces: list[ParameterPiece]
    replicated: bool  # every rank holds everything (stage 0)
    base_optimizer: Any
    refresh: Callable[[], None]
    kind: str  # of the layout, for messages
    flats: Sequence[torch.Tensor] = ()  # those that may be padding alone


@contextmanager
def sharded_optimizer(engine_class: Any) -> Iterator[None]:
    """Inside, a DeepSpeed engine of stage 1 in bf16 gets the optimizer of every other engine of stage 1.

    Left to itself, DeepSpeed takes one for it (BF16_Optimizer) that sums whole gradients on every rank.
    """
    choose = engine_class._do_optimizer_sanity_check

    def sharded(engine: Any, optimizer: Any) -> Any:
        # Asked all the same: it refuses combinations that DeepSpeed cannot do.
        chosen = choose(engine, optimizer)
        return "zero_optimization" if engine.zero_optimization_stage() else chosen

    engine_class._do_optimizer_sanity_check = sharded
    try:
        yield
    finally:
        engine_class._do_optimizer_sanity_check = choose


def find_layout(engine: Any, names: dict[int, str]) -> ZeroLayout:
    """The layout of a DeepSpeed engine. `names` maps id(parameter) to its name.

    Raises EngineError naming the optimizer class when its layout is not known.
    """
    optimizer = engine.optimizer
    # By what only that optimizer has, in this order: those of stages 1 to 3 have `param_groups` as well.
    finders: list[tuple[str, Callable[[Any, dict[int, str]], ZeroLayout]]] = [
        ("fp32_partitioned_groups_flat", _stage_3),
        ("single_partition_of_fp32_groups", _stage_1_and_2),
        ("fp32_groups", _unsharded_half),
        ("param_groups", _unsharded_fp32),
    ]
    for attribute, find in finders:
        if hasattr(optimizer, attribute):
            return find(optimizer, names)
    raise EngineError(
        f"DeepSpeed's {type(optimizer).__name__} is unknown to Stoker: use the versions of constraints.txt"
    )


def even_share(pieces: list[ParameterPiece], rank: int, ranks: int) -> list[ParameterPiece]:
    """Of pieces that every rank holds: this rank's part when each stores as many elements, give or take one."""
    total = sum(piece.count for piece in pieces)
    first, last = total * rank // ranks, total * (rank + 1) // ranks
    share, begin = [], 0
    for piece in pieces:
        low, high = max(first, begin), min(last, begin + piece.count)
        if low < high:
            skipped = low - begin
            start, offset = piece.start + skipped, piece.offset + skipped
            share.append(replace(piece, start=start, offset=offset, count=high - low))
        begin += piece.count
    return share


def self_test(layout: ZeroLayout) -> ZeroLayout:
    """The layout, of which every piece equals the live weights. Raises EngineError naming the first that does not."""
    for piece in layout.pieces:
        live = piece.live()
        # Rounded as DeepSpeed rounds, so that equality is exact; on the host, where memory is not short.
        if not torch.equal(piece.of(piece.flat).to(live.dtype).cpu(), live.detach().cpu()):
            raise EngineError(
                f"DeepSpeed keeps the fp32 weights of {piece.parameter} elsewhere than Stoker expects at "
                f"{layout.kind}: use the versions of constraints.txt"
            )
    return layout


@contextmanager
def no_update(optimizer: Any) -> Iterator[None]:
    """Inside, a step changes nothing and drops the gradients, by the way that DeepSpeed has for an infinite one.

    The loss scale stays as well. The engine counts a skipped step: one that it does not count was made.
    """
    infinite = torch.tensor(math.inf)
    ways: list[dict[str, Any]] = [
        {"_get_norm_groups": lambda: [infinite], "_update_scale": _nothing},  # stage 3
        {"scaled_global_norm": lambda: infinite, "_update_scale": _nothing},  # stages 1 and 2
        {"overflow_checker": SimpleNamespace(check=lambda: True), "_update_scale": _nothing},  # stage 0 in bf16
    ]
    # Without a wrapper the engine itself clears the gradients, and would take the flag from one.
    way = next((way for way in ways if hasattr(optimizer, next(iter(way)))), {"step": _nothing, "overflow": True})
    kept = {name: vars(optimizer)[name] for name in way if name in vars(optimizer)}
    vars(optimizer).update(way)
    try:
        yield
    finally:
        for name in way:
            del vars(optimizer)[name]
        vars(optimizer).update(kept)


@contextmanager
def loss_scale_kept(optimizer: Any) -> Iterator[list[bool]]:
    """Inside, a step of fp16 divides the gradients by the loss scale that they were multiplied by.

    DeepSpeed lets the scale follow before it divides: where it doubles, an update would be half of what it should be.
    Gives a list in which the step puts whether it overflowed; `move_loss_scale` is to follow.
    """
    overflows: list[bool] = []
    vars(optimizer)["_update_scale"] = overflows.append  # on the instance: it hides the method of the class
    try:
        yield overflows
    finally:
        del vars(optimizer)["_update_scale"]


def move_loss_scale(optimizer: Any, overflows: list[bool], *, gives_up: bool = False) -> bool:
    """After the step inside of `loss_scale_kept`. False, with nothing changed, where it overflowed at the least scale.

    Or wherever it overflowed with `gives_up`. Raises EngineError when DeepSpeed did not ask for it exactly once.
    """
    if len(overflows) != 1:
        raise EngineError(
            f"DeepSpeed moved the loss scale {len(overflows)} times in a step: use the versions of constraints.txt"
        )
    scaler = optimizer.loss_scaler
    # As DynamicLossScaler.update_scale: it lowers the scale only once the hysteresis is used up.
    lowers = scaler.delayed_shift == 1 or scaler.cur_hysteresis == 1
    if overflows[0] and (gives_up or (lowers and scaler.cur_scale <= scaler.min_scale)):
        return False
    optimizer._update_scale(overflows[0])
    return True


def _nothing(*_: Any) -> None:
    """In the place of a method that is to do nothing."""


def _whole(parameter: torch.Tensor, start: int, count: int) -> Callable[[], torch.Tensor]:
    return lambda: parameter.data.reshape(-1).narrow(0, start, count)


def _stage_1_and_2(optimizer: Any, names: dict[int, str]) -> ZeroLayout:
    pieces: list[ParameterPiece] = []
    flats = optimizer.single_partition_of_fp32_groups
    for group, flat in enumerate(flats):
        # A group is flattened, padded to a multiple of the ranks, and cut into equal partitions by rank.
        first = torch.distributed.get_rank(optimizer.real_dp_process_group[group]) * flat.numel()
        parameters = optimizer.round_robin_bit16_groups[group]
        offsets = optimizer.round_robin_bit16_offsets[group]
        pieces += _overlaps(parameters, offsets, first, flat, group, names)
    return ZeroLayout(pieces, False, optimizer.optimizer, optimizer.update_lp_params, "stage 1 or 2", flats)


def _overlaps(
    parameters: list[Any], offsets: list[int], first: int, flat: torch.Tensor, group: int, names: dict[int, str]
) -> Iterator[ParameterPiece]:
    """The parts of `parameters`, laid out at `offsets` of a flattened group, that fall within `flat`, at `first`."""
    for parameter, begin in zip(parameters, offsets, strict=True):
        low, high = max(begin, first), min(begin + parameter.numel(), first + flat.numel())
        if low < high:
            start, count = low - begin, high - low
            live = _whole(parameter, start, count)
            yield ParameterPiece(names[id(parameter)], start, count, flat, low - first, group, live)


def _stage_3(optimizer: Any, names: dict[int, str]) -> ZeroLayout:
    pieces: list[ParameterPiece] = []
    flats = optimizer.fp32_partitioned_groups_flat
    for index, flat in enumerate(flats):
        offset = 0
        for parameter in optimizer.fp16_groups[index]:
            # At stage 3 each parameter is cut by itself: a rank's partitions follow one another in `flat`.
            share = parameter.partition_numel()
            start = torch.distributed.get_rank(parameter.ds_process_group) * share
            count = min(share, parameter.ds_numel - start)
            if count > 0:  # a small parameter may end before this rank's partition begins
                live = _partition(parameter, count)
                group = optimizer.sub_group_to_group_id[index]
                pieces.append(ParameterPiece(names[id(parameter)], start, count, flat, offset, group, live))
            offset += share
    return ZeroLayout(pieces, False, optimizer.optimizer, lambda: _refresh_stage_3(optimizer), "stage 3", flats)


def _partition(parameter: Any, count: int) -> Callable[[], torch.Tensor]:
    return lambda: parameter.ds_tensor.data.reshape(-1).narrow(0, 0, count)


def _refresh_stage_3(optimizer: Any) -> None:
    # Evaluation may leave parameters gathered, for a backward pass to come: those would keep the old values.
    optimizer._partition_all_parameters()
    for index in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    # Small parameters are never partitioned again after a step: gathered here, as DeepSpeed's own step does.
    if persistent := optimizer.persistent_parameters:
        persistent[0].all_gather(persistent)


def _unsharded_half(optimizer: Any, names: dict[int, str]) -> ZeroLayout:
    pieces, pairs = [], []
    for group, (live_group, master_group) in enumerate(zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)):
        for live, master in zip(live_group, master_group, strict=True):
            pairs.append((live, master))
            pieces.append(_unsharded_piece(live, master, group, names))

    def refresh() -> None:
        for live, master in pairs:
            live.data.copy_(master.data)

    return ZeroLayout(pieces, True, optimizer.optimizer, refresh, "stage 0 in half precision")


def _unsharded_fp32(optimizer: Any, names: dict[int, str]) -> ZeroLayout:
    pieces = [
        _unsharded_piece(parameter, parameter, group, names)
        for group, param_group in enumerate(optimizer.param_groups)
        for parameter in param_group["params"]
    ]
    return ZeroLayout(pieces, True, optimizer, lambda: None, "stage 0")


def _unsharded_piece(live: torch.Tensor, master: torch.Tensor, group: int, names: dict[int, str]) -> ParameterPiece:
    # The optimizer's state is keyed by the master itself, so the flat view is taken where elements are read.
    return ParameterPiece(names[id(live)], 0, live.numel(), master, 0, group, _whole(live, 0, live.numel()))
