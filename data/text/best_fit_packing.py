"""Best-fit packing: which documents share a row, by their lengths alone (Ding et al. 2024). Pure."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.arrays import Array, Ints

VERSION = 1  # of the rows, and of what is kept beside shards: raise it when either changes
# Documents are fitted among about this many: few enough to lie close together, enough to leave few gaps.
SEGMENT_TOKENS = 1 << 18
SEGMENT_ROWS = 512


@dataclass(frozen=True)
class PackedRows:
    """Rows of a shard, in order of the first document in each: row r has spans starts[r] … starts[r+1]-1.

    Span p is made of inputs first[p] … first[p] + row_tokens - 1 of document documents[p], or up to its last input.
    Segment s is rows segments[s] … segments[s+1]-1, with segment_inputs[s] inputs: all those of neighbouring documents.
    """

    starts: Array
    documents: Array
    first: Array
    segments: Array
    segment_inputs: Array


def pack_best_fit(lengths: Ints, row_tokens: int) -> PackedRows:
    """Fit documents of `lengths` tokens into rows of `row_tokens` inputs, none cut unless it is longer than a row.

    A document has one input, and one target, fewer than tokens. Longer ones are cut into full rows and a remainder;
    those of one token have nothing to learn and lie in no row.
    """
    inputs = np.maximum(np.asarray(lengths, np.int64) - 1, 0)
    ranges = list(_segments(inputs, row_tokens))
    found = [_pack_segment(a, inputs[a:b], row_tokens) for a, b in ranges]
    counts, documents, first = (_joined([part[i] for part in found]) for i in range(3))
    return PackedRows(
        starts=_narrow(np.concatenate(([0], np.cumsum(counts)))),
        documents=_narrow(documents),
        first=_narrow(first),
        segments=np.cumsum([0, *(len(counts) for counts, _, _ in found)]),
        segment_inputs=np.array([inputs[a:b].sum() for a, b in ranges], np.int64),
    )


def segment_tokens(row_tokens: int) -> int:
    """A segment is that large, but for its last document, unless the shard is smaller."""
    return max(SEGMENT_TOKENS, SEGMENT_ROWS * row_tokens)


def _segments(inputs: Ints, row_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about equally many inputs; each has some."""
    # Only documents with inputs open a segment, so that none is empty.
    learnt = np.flatnonzero(inputs)
    before = np.cumsum(inputs[learnt]) - inputs[learnt]
    total = int(inputs.sum())
    count = max(1, total // segment_tokens(row_tokens))
    opens = np.flatnonzero(np.diff(before * count // max(total, 1), prepend=-1))
    return pairwise([*learnt[opens].tolist(), len(inputs)])


def _pack_segment(origin: int, inputs: Ints, row_tokens: int) -> tuple[Ints, Ints, Ints]:
    """Spans of each row; then the document and the first input of each span, row after row."""
    documents, first = _spans(inputs, row_tokens)
    sizes = np.minimum(inputs[documents] - first, row_tokens)
    largest_first = np.argsort(-sizes, kind="stable")
    fitted = np.empty(len(sizes), np.int64)
    fitted[largest_first] = best_fit_decreasing(sizes[largest_first].tolist(), row_tokens)
    # Rows in the order of their first documents: what is near in the shard is read about together.
    _, earliest = np.unique(fitted, return_index=True)
    rows = np.argsort(np.argsort(earliest))[fitted]
    row_after_row = np.argsort(rows, kind="stable")
    return np.bincount(rows), origin + documents[row_after_row], first[row_after_row]


def _spans(inputs: Ints, row_tokens: int) -> tuple[Ints, Ints]:
    """The document and the first input of each span, document after document."""
    counts = -(-inputs // row_tokens)
    documents = np.repeat(np.arange(len(inputs)), counts)
    return documents, (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * row_tokens


def best_fit_decreasing(sizes: Sequence[int], row_tokens: int) -> list[int]:
    """The row of each span; sizes fall from at most `row_tokens`. Each goes where it leaves the least space."""
    chosen = []
    rows = 0
    rows_with: dict[int, list[int]] = {}  # by the space left in them
    spaces: list[int] = []  # the keys of rows_with, sorted
    for size in sizes:
        tightest = bisect_left(spaces, size)
        if tightest < len(spaces):
            space = spaces[tightest]
            row = rows_with[space].pop()
            if not rows_with[space]:
                del spaces[tightest], rows_with[space]
        else:
            space, row = row_tokens, rows
            rows += 1
        chosen.append(row)
        left = space - size
        # A row that is full takes nothing more and is forgotten.
        if left in rows_with:
            rows_with[left].append(row)
        elif left:
            rows_with[left] = [row]
            insort(spaces, left)
    return chosen


def _joined(arrays: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _narrow(numbers: Ints) -> Array:
    """In the smallest type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
