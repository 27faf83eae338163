"""Batch normalisation: torch's own within a micro-batch; running statistics the same however the work is dealt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.models.norm import BatchNorm2d, commit_statistics, pending_statistics, set_micro_batch_weight

MICRO_BATCHES = torch.randn(8, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.ReLU(), BatchNorm2d(6))


def step(workers: list[nn.Module], dealt: list[list[int]]) -> Tensor:
    """One step as the engine takes it: each worker runs its micro-batches, and the sums go to all."""
    rounds = max(len(mine) for mine in dealt)
    for worker, mine in zip(workers, dealt, strict=True):
        for index in range(rounds):
            empty = index >= len(mine)
            set_micro_batch_weight(worker, 0.0 if empty else 1.0)
            worker(torch.full_like(MICRO_BATCHES[0], torch.inf) if empty else MICRO_BATCHES[mine[index]])
    pending = [pending_statistics(worker) for worker in workers]
    total = torch.stack([sums for sums in pending if sums is not None]).sum(dim=0)
    for worker in workers:
        commit_statistics(worker, total)
    return torch.cat([buffer for _, buffer in sorted(workers[0].named_buffers())])


@settings(max_examples=30)
@given(owners=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_running_statistics_do_not_depend_on_who_ran_which_micro_batch(owners: list[int]) -> None:
    expected = step([network()], [list(range(8))])
    dealt = [[index for index in range(8) if owners[index] == worker] for worker in range(4)]
    torch.testing.assert_close(step([network() for _ in range(4)], dealt), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [2, 4, 5, 8])
def test_all_workers_hold_the_same_statistics_after_two_steps(workers: int) -> None:
    alone, together = [network()], [network() for _ in range(workers)]
    dealt = [list(range(rank, 8, workers)) for rank in range(workers)]
    for _ in range(2):
        expected, found = step(alone, [list(range(8))]), step(together, dealt)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    states = [dict(worker.named_buffers()) for worker in together]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


def test_one_micro_batch_gives_what_torch_s_batch_norm_gives() -> None:
    ours, reference = BatchNorm2d(3), nn.BatchNorm2d(3)
    x, other = MICRO_BATCHES[0].clone().requires_grad_(), MICRO_BATCHES[0].clone().requires_grad_()
    y, expected = ours(x), reference(other)
    y.square().cos().sum().backward()
    expected.square().cos().sum().backward()
    commit_statistics(ours, _pending(ours))
    for found, wanted in [(y, expected), (x.grad, other.grad), (ours.weight.grad, reference.weight.grad)]:
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.running_var, reference.running_var)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


def test_running_statistics_rest_until_the_commit_and_move_once() -> None:
    norm = BatchNorm2d(3)
    for micro_batch in MICRO_BATCHES:
        norm(micro_batch)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    commit_statistics(norm, _pending(norm))
    torch.testing.assert_close(norm.running_mean, 0.1 * MICRO_BATCHES.mean(dim=(0, 1, 3, 4)))
    assert not _pending(norm).any(), "nothing is left to count twice"


def test_zeros_drop_what_is_pending_and_change_nothing() -> None:
    norm = BatchNorm2d(3)
    norm(MICRO_BATCHES[0])
    commit_statistics(norm, torch.zeros_like(_pending(norm)))
    assert torch.equal(norm.running_var, torch.ones(3))
    assert not _pending(norm).any()


def test_evaluation_leaves_nothing_pending() -> None:
    norm = BatchNorm2d(3).eval()
    norm(MICRO_BATCHES[0])
    assert not _pending(norm).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_keep_every_bit_through_casts_of_the_module(dtype: torch.dtype) -> None:
    norm = BatchNorm2d(3)
    norm(MICRO_BATCHES[0])
    commit_statistics(norm, _pending(norm))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    norm = norm.to(dtype).half().bfloat16().float().to(dtype)
    assert norm.weight.dtype == dtype
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, var)
    y = norm(MICRO_BATCHES[1].to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), BatchNorm2d(3)(MICRO_BATCHES[1]), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(_pending(norm)[:3], MICRO_BATCHES[1].mean(dim=(0, 2, 3)), rtol=1e-2, atol=1e-2)


def test_a_module_without_batch_norm_has_no_statistics() -> None:
    assert pending_statistics(nn.Linear(2, 2)) is None


def _pending(module: nn.Module) -> Tensor:
    sums = pending_statistics(module)
    assert sums is not None
    return sums


def test_one_value_a_channel_is_its_own_mean_and_moves_no_statistic() -> None:
    """What is left of a micro-batch whose other images were skipped, at the end of a network: torch refuses it."""
    norm = BatchNorm2d(3)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x_BCHW = torch.randn(1, 3, 1, 1, requires_grad=True)
    y_BCHW = norm(x_BCHW)
    assert y_BCHW.flatten().tolist() == [1.0, 2.0, 3.0]
    y_BCHW.sum().backward()
    assert x_BCHW.grad is not None and x_BCHW.grad.flatten().tolist() == [0.0, 0.0, 0.0]
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    commit_statistics(norm, _pending(norm))
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
