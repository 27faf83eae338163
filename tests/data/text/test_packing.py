"""Which tokens lie in which row: concatenated or fitted, exactly once, whatever the order of access."""

import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.arrays import Ints
from data.index.column import Column
from data.index.shuffle_blocks import GROUP_SAMPLES, split_into_blocks
from data.order.epochs import SampleStream
from data.order.lanes import lane_starts
from data.order.row_order import RowGroup, RowOrder
from data.text import best_fit_packing
from data.text.best_fit_packing import PackedRows, best_fit_decreasing, pack_best_fit
from data.text.best_fit_rows import FittedRows, row_blocks
from data.text.concat_packing import ConcatenatedRows, TokenSpan, TokenStream

shard_lengths = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=90), min_size=1, max_size=4)
row_tokens = st.integers(1, 24)


def _rows_of(packed: PackedRows, lengths: list[int], context: int) -> list[list[tuple[int, int, int]]]:
    """(document, first, last) input ranges of each row."""
    spans = [
        (document, first, min(first + context, lengths[document] - 1))
        for document, first in zip(packed.documents.tolist(), packed.first.tolist(), strict=True)
    ]
    return [spans[a:b] for a, b in pairwise(packed.starts.tolist())]


@given(st.lists(st.integers(0, 90), max_size=300), row_tokens, st.integers(1, 400))
def test_fitted_rows_hold_each_input_once_and_cut_no_document_that_fits(
    lengths: list[int], context: int, tokens: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_fit_packing, "SEGMENT_TOKENS", tokens)
        patch.setattr(best_fit_packing, "SEGMENT_ROWS", 1)
        packed = pack_best_fit(np.array(lengths, np.int64), context)
    rows = _rows_of(packed, lengths, context)
    inputs = [(document, i) for row in rows for document, first, last in row for i in range(first, last)]
    assert sorted(inputs) == [(document, i) for document, length in enumerate(lengths) for i in range(length - 1)]
    assert all(0 < sum(last - first for _, first, last in row) <= context for row in rows)
    spans = Counter(document for row in rows for document, _, _ in row)
    assert all(count == -(-(lengths[document] - 1) // context) for document, count in spans.items())
    bounds = packed.segments.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(rows) and all(a < b for a, b in pairwise(bounds))
    segments = [{document for row in rows[a:b] for document, _, _ in row} for a, b in pairwise(bounds)]
    assert all(max(before) < min(after) for before, after in pairwise(segments)), "neighbours are fitted together"
    totals = [sum(last - first for row in rows[a:b] for _, first, last in row) for a, b in pairwise(bounds)]
    assert totals == packed.segment_inputs.tolist()


def _naive_best_fit(sizes: list[int], context: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for size in sizes:
        spaces = [(context - sum(row), -number) for number, row in enumerate(rows) if context - sum(row) >= size]
        if spaces:
            rows[-min(spaces)[1]].append(size)
        else:
            rows.append([size])
    return rows


@given(st.lists(st.integers(1, 60), max_size=120))
def test_best_fit_fills_rows_as_the_naive_search_of_all_rows_does(sizes: list[int]) -> None:
    sizes.sort(reverse=True)
    chosen = best_fit_decreasing(sizes, 60)
    rows = [[size for size, row in zip(sizes, chosen, strict=True) if row == number] for number in sorted(set(chosen))]
    assert sorted(rows) == sorted(_naive_best_fit(sizes, 60))


@pytest.mark.parametrize(("context", "most_lost"), [(512, 0.01), (2048, 0.01), (8192, 0.01)])
def test_little_is_lost_to_padding_on_the_lengths_of_real_files(context: int, most_lost: float) -> None:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    lengths = np.array([file.stat().st_size // 3 + 1 for file in files], np.int64)
    packed = pack_best_fit(lengths, context)
    assert 1 - np.maximum(lengths - 1, 0).sum() / ((len(packed.starts) - 1) * context) < most_lost


def test_fitting_is_the_same_on_every_machine_and_version() -> None:
    lengths = [7, 1, 20, 3, 4, 0, 6, 2]
    assert _rows_of(pack_best_fit(np.array(lengths), 8), lengths, 8) == [
        [(0, 0, 6), (3, 0, 2)],
        [(2, 0, 8)],
        [(2, 8, 16)],
        [(2, 16, 19), (6, 0, 5)],
        [(4, 0, 3), (7, 0, 1)],
    ]


Token = tuple[int, int]  # sample, number within it


def _stream(
    shards: list[list[int]], window_bytes: int, seed: int | None, lanes: int
) -> tuple[SampleStream, TokenStream]:
    lengths = Column([np.array(shard) for shard in shards])
    groups = [np.add.reduceat(shard, np.arange(0, len(shard), GROUP_SAMPLES)) for shard in lengths.tables]
    blocks = split_into_blocks(np.array([len(shard) for shard in shards]), groups)
    tokens = lengths.block_totals(blocks)
    stream = SampleStream(blocks, window_bytes, "f", seed, lanes, tokens)
    return stream, TokenStream(stream, lengths, tokens)


def _written_out(stream: SampleStream, lengths: list[int], passes: int) -> list[Token]:
    orders = [stream.order(number) for number in range(passes)]
    ids = [int(i) for order in orders for i in order.samples(0, stream.count)]
    return [(sample, number) for sample in ids for number in range(lengths[sample])]


def _expanded(spans: list[TokenSpan]) -> tuple[list[Token], list[Token]]:
    """The inputs and the targets of a row."""
    inputs: list[Token] = []
    targets: list[Token] = []
    for span in spans:
        assert span.at == len(inputs)
        tokens = [(span.sample, number) for number in range(span.first, span.last + span.has_next)]
        inputs += tokens[: span.last - span.first]
        targets += tokens if len(targets) < span.at else tokens[1:]
    return inputs, targets


@given(shard_lengths, row_tokens, st.integers(1, 2000), st.integers(1, 600), st.integers(1, 6), st.data())
def test_concatenated_rows_are_the_written_out_stream_cut_up(
    shards: list[list[int]], context: int, window_bytes: int, group_tokens: int, lanes: int, data: st.DataObject
) -> None:
    lengths = [length for shard in shards for length in shard]
    assume(sum(lengths) > 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.text.concat_packing.ROW_WINDOW_TOKENS", group_tokens)
        stream, tokens = _stream(shards, window_bytes, 1, lanes)
        rows = ConcatenatedRows(tokens, context, ("f", 1), lanes)
        again = ConcatenatedRows(tokens, context, ("f", 1), lanes)
    assert rows.count == max(1, sum(lengths) // context)
    naive = _written_out(stream, lengths, 4 + 4 * context // sum(lengths))
    items = np.array(data.draw(st.permutations(range(2 * rows.count))))
    found = dict(zip(items.tolist(), rows.spans(items), strict=True))
    for pass_number in range(2):
        starts = [pass_number * sum(lengths) + row * context for row in range(rows.count)]
        cut = [(naive[start : start + context], naive[start + 1 : start + context + 1]) for start in starts]
        in_pass = [_expanded(found[pass_number * rows.count + position]) for position in range(rows.count)]
        assert sorted(in_pass) == sorted(cut)
        borders = lane_starts(rows.count, lanes)
        for lane in range(lanes):
            assert sorted(in_pass[lane::lanes]) == sorted(cut[borders[lane] : borders[lane + 1]])
    one_by_one = [next(again.spans(np.array([item]))) for item in range(2 * rows.count)]
    assert one_by_one == [found[item] for item in range(2 * rows.count)]


@given(shard_lengths, row_tokens)
def test_a_validation_pass_is_the_shards_in_order_and_ends_with_the_last_token(
    shards: list[list[int]], context: int
) -> None:
    lengths = [length for shard in shards for length in shard]
    assume(sum(lengths) > 1)
    rows = ConcatenatedRows(_stream(shards, 1000, None, 1)[1], context, None, 1)
    naive = [(sample, number) for sample, length in enumerate(lengths) for number in range(length)]
    found = [_expanded(spans) for spans in rows.spans(np.arange(rows.count))]
    assert [token for inputs, _ in found for token in inputs] == naive[:-1]
    assert [token for _, targets in found for token in targets] == naive[1:]
    assert all(len(inputs) == context for inputs, _ in found[:-1])


def _located(order: RowOrder, items: Ints) -> list[tuple[RowGroup, int]]:
    return list(order.rows(items))


@given(st.integers(1, 300), row_tokens, st.integers(20, 2000), st.integers(1, 9))
def test_each_pass_is_a_permutation_of_its_rows_inside_groups_of_a_lane(
    pass_rows: int, row_tokens: int, window_tokens: int, lanes: int
) -> None:
    order = RowOrder(pass_rows, row_tokens, window_tokens, ("f", 1), lanes)
    for pass_number in range(2):
        found = _located(order, np.arange(pass_number * pass_rows, (pass_number + 1) * pass_rows))
        assert sorted(row for _, row in found) == list(range(pass_rows))
        assert all(group.pass_number == pass_number and group.first <= row < group.stop for group, row in found)
        starts = lane_starts(pass_rows, lanes)
        for lane in range(lanes):
            sizes = {group: group.stop - group.first for group, _ in found[lane::lanes]}
            assert all(starts[lane] <= group.first and group.stop <= starts[lane + 1] for group in sizes)
            assert sum(sizes.values()) == starts[lane + 1] - starts[lane]
            assert not sizes or max(sizes.values()) - min(sizes.values()) <= 1, "no tiny last group"
            assert all((size - 1) * row_tokens * lanes <= window_tokens for size in sizes.values())


def test_seed_data_pass_and_group_each_change_the_order_of_rows() -> None:
    def offsets(key: tuple[str | int, ...], start: int) -> tuple[int, ...]:
        found = _located(RowOrder(200, 10, 1000, key, 1), np.arange(start, start + 100))
        return tuple(row - start % 200 for _, row in found)

    orders = [offsets(("f", 1), start) for start in (0, 100, 200)] + [offsets(("f", 2), 0), offsets(("g", 1), 0)]
    assert len(set(orders)) == 5


def test_the_order_of_rows_is_the_same_on_every_machine_and_version() -> None:
    one, three = (RowOrder(90, 10, 300, ("fingerprint", 1337), lanes) for lanes in (1, 3))
    assert [row for _, row in _located(one, np.arange(148, 156))] == [40, 50, 63, 68, 89, 80, 76, 81]
    assert [row for _, row in _located(three, np.arange(148, 156))] == [48, 78, 23, 54, 89, 28, 52, 88]


@given(shard_lengths, row_tokens, st.integers(1, 4), st.data())
def test_fitted_rows_are_those_of_each_shard_alone_and_come_once_per_pass(
    shards: list[list[int]], context: int, lanes: int, data: st.DataObject
) -> None:
    packs = [pack_best_fit(np.array(shard), context) for shard in shards]
    assume(sum(len(packed.segment_inputs) for packed in packs))
    column = Column([np.array(shard) for shard in shards])
    stream = SampleStream(row_blocks(packs, 1.5), 500, "f", 1, lanes)
    rows = FittedRows(packs, column.starts, column, context, stream)
    alone = [
        [(int(start) + document, first, last) for document, first, last in row]
        for shard, packed, start in zip(shards, packs, column.starts, strict=False)
        for row in _rows_of(packed, shard, context)
    ]
    items = np.array(data.draw(st.permutations(range(2 * rows.count))))
    found = dict(zip(items.tolist(), rows.spans(items), strict=True))
    assert rows.count == len(alone)
    for pass_number in range(2):
        in_pass = [found[pass_number * rows.count + position] for position in range(rows.count)]
        assert sorted([span[:3] for span in spans] for spans in in_pass) == sorted(alone)
        assert all(len(_expanded(spans)[0]) == len(_expanded(spans)[1]) for spans in in_pass)
