"""Which downloaded bytes are used: those that agree with checksums, came twice, or came by TLS. No I/O of its own."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import xxhash

from configs.errors import DamagedDataError
from data.shards.shard import CHECKED_BYTES, Checksums, checksum

PIECE_BYTES = 1 << 20
_PIECE_BLOCKS = PIECE_BYTES // CHECKED_BYTES

# (number of the piece, its contents) -> whether they are used.
PieceCheck = Callable[[int, memoryview], bool]


def accept_all(_piece: int, _contents: memoryview) -> bool:
    """For connections that TLS protects: it refuses bytes that were changed on the way."""
    return True


def matches_checksums(expected: Checksums) -> PieceCheck:
    """Whether each block of a piece is as it was when the shard was indexed."""

    def is_intact(piece: int, contents: memoryview) -> bool:
        blocks = [checksum(contents[i : i + CHECKED_BYTES]) for i in range(0, len(contents), CHECKED_BYTES)]
        first = piece * _PIECE_BLOCKS
        return np.array_equal(expected.blocks[first : first + len(blocks)], np.array(blocks, np.uint64))

    return is_intact


def arrived_twice() -> PieceCheck:
    """Whether the same contents came before, by another request: what is flipped on the way is not flipped alike."""
    seen: set[tuple[int, bytes]] = set()

    def is_intact(piece: int, contents: memoryview) -> bool:
        found = (piece, xxhash.xxh3_128_digest(contents))
        if found in seen:
            return True
        seen.add(found)
        return False

    return is_intact


def fetch_verified(
    name: str, pieces: Sequence[int], fetch: Callable[[int, int], memoryview], is_intact: PieceCheck, rounds: int
) -> dict[int, bytes]:
    """The contents of ascending `pieces`, each asked for until `is_intact` accepts it.

    `fetch(first, count)` gives neighbouring pieces in one request.
    DamagedDataError: not accepted after `rounds` downloads.
    """
    verified: dict[int, bytes] = {}
    for _ in range(rounds):
        for first, count in neighbours([piece for piece in pieces if piece not in verified]):
            contents = fetch(first, count)
            for piece in range(first, first + count):
                contents_of_piece = contents[(piece - first) * PIECE_BYTES :][:PIECE_BYTES]
                if is_intact(piece, contents_of_piece):
                    verified[piece] = bytes(contents_of_piece)
        if len(verified) == len(pieces):
            return verified
    bad = next(piece for piece in pieces if piece not in verified)
    raise DamagedDataError(
        f"{name}: bytes {bad * PIECE_BYTES}-{(bad + 1) * PIECE_BYTES - 1} came differently from what is expected, "
        f"{rounds} times: the shard is damaged: upload it again; if it was meant to change, remove its index, the file "
        "*.stoker-idx.npz beside it and the folder stoker/index in ~/.cache (or XDG_CACHE_HOME)"
    )


def neighbours(pieces: Sequence[int], at_most: int | None = None) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbours among ascending pieces, no longer than `at_most`."""
    # Numbers that follow each other have the same difference to their index.
    for _, group in groupby(enumerate(pieces), key=lambda pair: pair[1] - pair[0]):
        members = [piece for _, piece in group]
        step = at_most or len(members)
        for i in range(0, len(members), step):
            yield members[i], len(members[i : i + step])
