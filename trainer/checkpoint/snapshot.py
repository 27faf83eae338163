"""A rank's share of the state, copied to host memory that is used again for every save."""

from collections.abc import Mapping

import torch

from trainer.checkpoint.block_files import host_memory
from trainer.checkpoint.commit import RankShare
from trainer.checkpoint.manifest import FRAGMENT_DTYPE, Manifest, StoredBuffer, StoredFragment
from trainer.checkpoint.safetensors_file import TensorInfo, plan_tensor_file
from trainer.engine.engine_protocol import Engine, Fragment
from trainer.rank.ranks import Ranks

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class HostBuffer:
    """The image of this rank's file, allocated at the first save and whenever the size of the state changes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._area: torch.Tensor | None = None

    def of_bytes(self, size_bytes: int) -> torch.Tensor:
        """uint8 memory of just that size. What it held before is gone."""
        if self._area is None or len(self._area) < size_bytes:
            self._area = None  # not both at once
            self._area = self._allocate(size_bytes)
        return self._area[:size_bytes]

    def _allocate(self, size_bytes: int) -> torch.Tensor:
        if self._device.type == "cpu":
            return torch.frombuffer(host_memory(size_bytes), dtype=torch.uint8)
        # Pinned once and kept: pinning some GB takes seconds, and pageable memory would make every copy wait.
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)


def take_snapshot(engine: Engine, header: Manifest, ranks: Ranks, buffer: HostBuffer) -> RankShare:
    """Copy this rank's share; training may go on as soon as this returns."""
    file = f"rank-{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    fragments = list(engine.fragments())
    buffers = buffers_of_rank(engine.buffers(), ranks.rank, ranks.world)
    live = {_key(fragment): fragment.tensor for fragment in fragments}
    live |= {f"buffer/{name}": value for name, value in buffers.items()}
    plan = plan_tensor_file({key: TensorInfo(_NAMES[t.dtype], tuple(t.shape)) for key, t in live.items()})
    image = buffer.of_bytes(plan.bytes)
    image[: len(plan.header)] = torch.frombuffer(bytearray(plan.header), dtype=torch.uint8)
    for key, tensor in live.items():
        offset = plan.offsets[key]
        # Into pinned memory without waiting: one wait for all copies.
        image[offset : offset + tensor.nbytes].view(tensor.dtype).copy_(tensor.detach().reshape(-1), non_blocking=True)
    # Or the next step would change the weights while they are still being copied.
    if engine.device.type != "cpu":
        torch.accelerator.synchronize()
    return RankShare(
        header,
        file,
        image.numpy().data,
        [
            StoredFragment(f.parameter, f.kind, f.start, f.tensor.numel(), file, plan.offsets[_key(f)])
            for f in fragments
        ],
        {
            name: StoredBuffer(_NAMES[t.dtype], list(t.shape), file, plan.offsets[f"buffer/{name}"])
            for name, t in buffers.items()
        },
    )


def _key(fragment: Fragment) -> str:
    return StoredFragment(fragment.parameter, fragment.kind, fragment.start, 0, "", 0, FRAGMENT_DTYPE).key


def buffers_of_rank(buffers: Mapping[str, torch.Tensor], rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Whole tensors that every rank holds, dealt out so that each is stored once and all write about as much."""
    loads_bytes = [0] * ranks  # every rank works all of it out, so that no collective is needed to agree
    mine = {}
    for name, tensor in sorted(buffers.items(), key=lambda item: (-item[1].nbytes, item[0])):
        least = loads_bytes.index(min(loads_bytes))
        loads_bytes[least] += tensor.nbytes
        if least == rank:
            mine[name] = tensor
    return mine
