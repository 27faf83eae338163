"""Order, packing and batches follow from position alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.recipe import Batch
from data.batch import eval_slices, step_slices
from data.order import EpochOrder, cut_blocks
from data.packing import TokenStream
from data.row_order import RowOrder
from data.stream import SampleStream
from data.types import Ints

shard_counts = st.lists(st.integers(1, 300), min_size=1, max_size=5)
batches = st.builds(
    lambda micro, n: Batch.model_validate({"global": micro * n, "micro": micro}), *[st.integers(1, 12)] * 2
)


def _sizes(counts: list[int]) -> Ints:
    return np.random.default_rng(sum(counts)).integers(0, 1000, sum(counts))


@given(shard_counts, st.integers(1, 200_000), st.integers(0, 3))
def test_every_epoch_is_a_permutation(counts: list[int], window_bytes: int, epoch: int) -> None:
    order = EpochOrder(cut_blocks(counts, _sizes(counts)), window_bytes, ("f", 1, epoch))
    assert sorted(order.samples(0, sum(counts))) == list(range(sum(counts)))


@given(shard_counts, st.integers(1, 200_000), st.data())
def test_any_range_equals_that_range_of_the_whole(counts: list[int], window_bytes: int, data: st.DataObject) -> None:
    blocks = cut_blocks(counts, _sizes(counts))
    start = data.draw(st.integers(0, sum(counts)))
    stop = data.draw(st.integers(start, sum(counts)))
    whole = EpochOrder(blocks, window_bytes, ("f", 1, 0)).samples(0, sum(counts))
    assert list(EpochOrder(blocks, window_bytes, ("f", 1, 0)).samples(start, stop)) == list(whole[start:stop])


def test_seed_epoch_and_data_each_change_the_order() -> None:
    blocks = cut_blocks([500], np.ones(500, np.int64))
    orders = {
        tuple(EpochOrder(blocks, 10**9, key).samples(0, 500))
        for key in [("f", 1, 0), ("f", 1, 1), ("f", 2, 0), ("g", 1, 0)]
    }
    assert len(orders) == 4


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    blocks = cut_blocks([100, 50], np.full(150, 10))
    found = EpochOrder(blocks, 700, ("fingerprint", 1337, 2)).samples(0, 8).tolist()
    assert found == [27, 139, 148, 58, 7, 131, 128, 63]


def test_a_window_holds_about_its_bytes_and_reads_stay_inside_it() -> None:
    order = EpochOrder(cut_blocks([64 * 100], np.full(6400, 10)), 6400, ("f", 1, 0))
    assert len(order.window_samples) - 1 == 10
    blocks_of_a_batch = {int(sample) // 64 for sample in order.samples(1280, 1280 + 64)}
    assert len(blocks_of_a_batch) <= 10


def test_a_billion_samples_are_ordered_without_touching_each() -> None:
    order = EpochOrder(cut_blocks([10**6] * 3, np.full(3 * 10**6, 1000)), 64_000_000, ("f", 1, 0))
    assert len(order.samples(1_500_000, 1_500_256)) == 256
    assert order.window.cache_info().currsize == 1


def test_natural_order_is_that_of_the_shards() -> None:
    stream = SampleStream(cut_blocks([70, 90], np.ones(160, np.int64)), 50, "f", None)
    assert list(stream.locate(0, 160).sample_ids) == list(range(160))


def test_positions_cross_epochs() -> None:
    stream = SampleStream(cut_blocks([7], np.ones(7, np.int64)), 50, "f", 3)
    located = stream.locate(5, 30)
    assert list(located.epochs) == [0] * 2 + [1] * 7 + [2] * 7 + [3] * 7 + [4] * 2
    assert sorted(located.sample_ids[2:9]) == list(range(7))
    assert list(located.sample_ids[2:9]) != list(located.sample_ids[9:16])


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=90), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(1, 2000),
    st.data(),
)
def test_packing_equals_a_naive_reference(
    shards: list[list[int]], context: int, window_bytes: int, data: st.DataObject
) -> None:
    lengths = np.array([length for shard in shards for length in shard])
    if not lengths.sum():
        return
    stream = SampleStream(cut_blocks([len(shard) for shard in shards], lengths), window_bytes, "f", 1)
    tokens = TokenStream(stream, lengths)
    epochs = [stream.order(epoch).samples(0, len(lengths)) for epoch in range(3)]
    naive = [(int(s), i) for ids in epochs for s in ids for i in range(lengths[s])]
    row = data.draw(st.integers(0, max(0, len(naive) // context - 2)))
    rows = data.draw(st.integers(1, 4))
    start, stop = row * context, min((row + rows) * context + 1, len(naive))
    around = tokens.stretch(max(0, start - data.draw(st.integers(0, 50))), stop + data.draw(st.integers(0, 50)))
    found = [(span.sample, i) for span in around.spans(start, stop) for i in range(span.first, span.last)]
    assert found == naive[start:stop]


def _rows(order: RowOrder, start: int, stop: int) -> list[int]:
    return [row for run in order.runs(start, stop) for row in range(run.first, run.stop)]


@given(st.integers(1, 300), st.integers(1, 20), st.integers(20, 2000), st.data())
def test_each_pass_is_a_permutation_of_its_rows(
    pass_rows: int, row_tokens: int, window_tokens: int, data: st.DataObject
) -> None:
    order = RowOrder(pass_rows, row_tokens, window_tokens, ("f", 1))
    whole = _rows(order, 0, 3 * pass_rows)
    for turn in range(3):
        rows = range(turn * pass_rows, (turn + 1) * pass_rows)
        assert sorted(whole[rows.start : rows.stop]) == list(rows)
    start = data.draw(st.integers(0, 3 * pass_rows))
    stop = data.draw(st.integers(start, 3 * pass_rows))
    again = RowOrder(pass_rows, row_tokens, window_tokens, ("f", 1))
    assert _rows(again, start, stop) == whole[start:stop]
    groups = {run.group for run in order.runs(0, pass_rows)}
    sizes = [group.stop - group.first for group in groups]
    assert sum(sizes) == pass_rows and max(sizes) - min(sizes) <= 1  # no tiny last group
    assert len(sizes) == -(-pass_rows * row_tokens // window_tokens)


def test_seed_data_pass_and_group_each_change_the_order_of_rows() -> None:
    def offsets(key: tuple[str | int, ...], start: int) -> tuple[int, ...]:
        rows = _rows(RowOrder(200, 10, 1000, key), start, start + 100)
        return tuple(row - start for row in rows)

    orders = [offsets(("f", 1), start) for start in (0, 100, 200)] + [offsets(("f", 2), 0), offsets(("g", 1), 0)]
    assert len(set(orders)) == 5


def test_the_order_of_rows_is_the_same_on_every_machine_and_version() -> None:
    assert _rows(RowOrder(90, 10, 300, ("fingerprint", 1337)), 148, 156) == [130, 140, 153, 158, 179, 170, 166, 171]


def test_rows_without_a_key_stay_in_order() -> None:
    assert _rows(RowOrder(90, 10, 300, None), 0, 90) == list(range(90))


@given(batches, st.integers(1, 16), st.integers(1, 50))
def test_micro_batches_are_the_same_for_any_number_of_workers(batch: Batch, ranks: int, step: int) -> None:
    dealt = [step_slices(step, batch, rank, ranks) for rank in range(ranks)]
    assert {len(slices) for slices in dealt} == {batch.accumulation(ranks)}
    full = sorted((s for slices in dealt for s in slices if s.start < s.stop), key=lambda s: s.micro)
    assert full == step_slices(step, batch, 0, 1)
    for rank, slices in enumerate(dealt):
        assert [s.micro for s in slices] == [round_ * ranks + rank for round_ in range(batch.accumulation(ranks))]


@given(batches, st.integers(1, 50))
def test_micro_batches_partition_the_global_batch(batch: Batch, step: int) -> None:
    slices = step_slices(step, batch, 0, 1)
    assert (slices[0].start, slices[-1].stop) == ((step - 1) * batch.global_, step * batch.global_)
    assert all(a.stop == b.start and a.stop - a.start == batch.micro for a, b in pairwise(slices))


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 16))
def test_one_evaluation_pass_covers_each_sample_once(count: int, micro: int, ranks: int) -> None:
    dealt = [eval_slices(count, micro, rank, ranks) for rank in range(ranks)]
    assert len({len(slices) for slices in dealt}) == 1
    covered = [p for slices in dealt for s in slices for p in range(s.start, s.stop)]
    assert sorted(covered) == list(range(count))


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_evaluation_of_nothing_has_no_slices(ranks: int) -> None:
    assert eval_slices(0, 4, 0, ranks) == []
