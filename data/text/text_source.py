"""Rows of tokens by item number: documents packed into rows and, for training, shuffled."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np

from configs.errors import DamagedDataError, DataError
from configs.recipe import Recipe
from configs.sections.data_section import TextData, TokensData
from configs.sections.model_section import ResnetModel, context_of
from data.arrays import Array, Ints, Say
from data.index.catalog import Catalog
from data.order import row_order
from data.order.epochs import SampleStream
from data.order.row_order import ROW_WINDOW_TOKENS
from data.source import IGNORED, Skipped, skipped_sample
from data.text import best_fit_packing
from data.text.best_fit_rows import FittedRows, load_packs, row_blocks
from data.text.concat_packing import ConcatenatedRows, TokenSpan, TokenStream
from data.text.documents import Documents, ReadWindow, open_documents

__all__ = ["open_text_source"]


NO_DOCUMENT = -1
_TokenData = TextData | TokensData
_VERSIONS = {"concat": row_order.VERSION, "best_fit": best_fit_packing.VERSION}


class RowPacking(Protocol):
    """What each row is made of; `count` rows make a pass."""

    @property
    def count(self) -> int:
        """Rows of a pass over the documents."""

    def spans(self, items: Ints) -> Iterator[list[TokenSpan]]:
        """What the row of each item is made of, in order of place."""


class TextSource:
    """tokens_BT and targets_BT int64; with data.document_mask also documents_BT, the number within the row or -1.

    A data.source.Source. With best_fit or document_mask no target lies in another document than its input.
    """

    def __init__(
        self, name: str, catalog: Catalog, documents: Documents, packing: RowPacking, data: _TokenData, context: int
    ) -> None:
        self.name = name
        self.catalog = catalog
        self.count = packing.count
        # With the version of the packing: the same documents in other rows are other data to resume on.
        self.fingerprint = f"{catalog.fingerprint} {documents.identity} {data.packing}-{_VERSIONS[data.packing]}"
        self._documents = documents
        # A micro-batch is filled, then its keys are asked for.
        self._spans = lru_cache(maxsize=16)(lambda items: list(packing.spans(np.frombuffer(items, np.int64))))
        self._context = context
        self._data_packing = data.packing
        self._stops = data.on_error == "stop"
        self._marks_documents = data.document_mask
        self._crosses_documents = data.packing == "concat" and not data.document_mask

    def blank(self, rows: int) -> dict[str, Array]:
        """End of document, or token 0 where the tokens were made elsewhere; targets -100, documents -1."""
        fills = {"tokens_BT": self._documents.blank, "targets_BT": IGNORED}
        if self._marks_documents:
            fills["documents_BT"] = NO_DOCUMENT
        return {name: np.full((rows, self._context), fill, np.int64) for name, fill in fills.items()}

    def prefetch(self, items: Ints) -> None:
        """See data.source.Source. Whole documents: rows from all over them are near in the stream."""
        samples = {span.sample for spans in self._spans(items.tobytes()) for span in spans}
        self.catalog.prefetch(np.array(sorted(samples), np.int64))

    def fill(self, items: Ints, rows: Ints, arrays: dict[str, Array]) -> list[Skipped]:
        """Write item items[i] into row rows[i] of blank arrays; a span that cannot be read stays blank, or raises."""
        skipped: list[Skipped] = []
        packing = self._spans(items.tobytes())
        # All cores encode what is missing before rows are filled one by one.
        self._documents.prepare(span.sample for spans in packing for span in spans)
        for row, spans in zip(rows.tolist(), packing, strict=True):
            self._fill_row(spans, arrays["tokens_BT"][row], arrays["targets_BT"][row], skipped)
            if self._marks_documents:
                for number, span in enumerate(spans):
                    arrays["documents_BT"][row, span.at : span.at + span.last - span.first] = number
        return skipped

    def keys(self, items: Ints) -> list[str]:
        """Per item, the documents of its row's input tokens: `key[first:last]` ranges joined by `|`.

        The rows of a pass cover each input once, without gaps or overlaps.
        """
        return [
            "|".join(f"{self.catalog.key(p.sample)}[{p.first}:{p.last}]" for p in spans if p.last > p.first)
            for spans in self._spans(items.tobytes())
        ]

    def close(self) -> None:
        """Let go of open files."""
        self.catalog.close()

    def left_out(self) -> list[Skipped]:
        """See data.source.Source. With concat a document of unknown length has one token, and is named by its row."""
        if self._data_packing == "concat":
            return []
        return [skipped_sample(self.catalog, *found) for found in sorted(self._documents.unreadable.items())]

    def _fill_row(self, spans: list[TokenSpan], tokens_T: Ints, targets_T: Ints, skipped: list[Skipped]) -> None:
        continues = False
        for sample, first, last, at, has_next in spans:
            count = last - first
            # Without inputs a span is only the target of the span before it.
            if not (count or self._crosses_documents):
                continue
            try:
                ids = self._documents.read(sample, first, last + has_next)
            except DamagedDataError as error:
                if self._stops:
                    raise
                if count:  # else the row that has its inputs names it
                    skipped.append(skipped_sample(self.catalog, sample, self.catalog.cause(sample, error)))
                continues = False
                continue
            tokens_T[at : at + count] = ids[:count]
            targets_T[at : at + len(ids) - 1] = ids[1:]
            # Across documents, the first token of this one is the target of the input before it.
            if continues:
                targets_T[at - 1] = ids[0]
            continues = self._crosses_documents


def open_text_source(name: str, catalog: Catalog, recipe: Recipe, seed: int | None, say: Say) -> TextSource:
    """Rows of recipe.model.context tokens, endless and shuffled with a seed, one pass in shard order with None.

    DataError: a sample is not what the recipe says, or there is nothing to learn.
    """
    data, model = recipe.data, recipe.model
    assert data.kind != "image" and not isinstance(model, ResnetModel), "the schema refuses other pairs"
    context = context_of(model)
    lanes = 1 if seed is None else data.lanes
    packing: RowPacking
    if data.packing == "best_fit":
        # A lane reads in one segment at least, whose rows are shuffled together.
        window_tokens = max(ROW_WINDOW_TOKENS, lanes * best_fit_packing.segment_tokens(context))
        documents = open_documents(catalog, data, say, ReadWindow(window_tokens, lanes))
        packing = _best_fit_rows(catalog, documents, data, context, seed, lanes, say)
    else:
        documents = open_documents(catalog, data, say, ReadWindow(ROW_WINDOW_TOKENS, lanes))
        packing = _concatenated_rows(catalog, documents, data, context, seed, lanes)
    return TextSource(name, catalog, documents, packing, data, context)


def _concatenated_rows(
    catalog: Catalog, documents: Documents, data: _TokenData, context: int, seed: int | None, lanes: int
) -> ConcatenatedRows:
    blocks = catalog.blocks()
    tokens = documents.lengths.block_totals(blocks)
    if tokens.sum() < 2:
        raise _nothing_to_learn(catalog, f"{tokens.sum()} tokens")
    stream = SampleStream(blocks, data.shuffle_window_bytes, catalog.fingerprint, seed, lanes, tokens)
    key = None if seed is None else (catalog.fingerprint, seed)
    return ConcatenatedRows(TokenStream(stream, documents.lengths, tokens), context, key, lanes)


def _best_fit_rows(
    catalog: Catalog, documents: Documents, data: _TokenData, context: int, seed: int | None, lanes: int, say: Say
) -> FittedRows:
    packs = load_packs(catalog, documents, context, say)
    inputs = sum(int(pack.segment_inputs.sum()) for pack in packs)
    if not inputs:
        raise _nothing_to_learn(catalog, "no document of two tokens")
    # Windows are given in bytes of shards, rows are measured in inputs.
    input_bytes = int(catalog.blocks().bytes.sum()) / inputs
    window_bytes = data.shuffle_window_bytes
    if documents.window_tokens is not None:
        # Documents are kept encoded for so long; in a wider window each would be encoded again and again.
        window_bytes = max(1, min(window_bytes, int(documents.window_tokens * input_bytes)))
    stream = SampleStream(row_blocks(packs, input_bytes), window_bytes, catalog.fingerprint, seed, lanes)
    return FittedRows(packs, catalog.starts, documents.lengths, context, stream)


def _nothing_to_learn(catalog: Catalog, found: str) -> DataError:
    return DataError(
        f"{catalog.shards[0].name}: {found} in {catalog.count} samples, where a row needs at least 2: "
        "name shards with text"
    )
