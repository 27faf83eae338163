"""Random draws keyed by position: (seed, step, micro-batch) decides dropout, wherever the micro-batch is computed."""

import hashlib

import torch


def position_seed(seed: int, *position: int) -> int:
    """A 63-bit generator seed from the run's seed and a position such as (step, micro-batch)."""
    text = ",".join(map(str, (seed, *position))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_dropout(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Point the default generators of host and device at this micro-batch of this step."""
    value = position_seed(seed, step, micro_batch)
    # torch.manual_seed takes half a millisecond: it seeds every kind of device there might be.
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
