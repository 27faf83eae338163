"""Reads from a server that fails in every way: right, or a clear stop."""

import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from configs.errors import DataError
from configs.sections.data_section import RemoteReads
from data.remote.byte_checks import PIECE_BYTES
from data.remote.remote_shard import RemoteShard, open_remote
from tests.support.data import hostile_server
from tests.support.data.hostile_server import HostileServer
from tests.support.data.shard_contents import checksums_of, contents_of

Serve = Callable[..., HostileServer]
Reads = Callable[..., RemoteReads]

SIZE = 9 * PIECE_BYTES + 12345
CONTENTS = contents_of(SIZE)


def random_spans(count: int, seed: int) -> list[tuple[int, int]]:
    draw = np.random.default_rng(seed)
    starts = draw.integers(0, SIZE, count)
    return [(int(a), int(min(SIZE - a, draw.integers(0, 60_000)))) for a in starts]


def read_all(shard: RemoteShard, spans: list[tuple[int, int]], threads: int = 6) -> int:
    """How many spans came wrong."""
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda span: shard.read(*span), spans))
    return sum(bytes_ != CONTENTS[a : a + n] for bytes_, (a, n) in zip(found, spans, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_no_byte_is_wrong_or_lost_when_a_third_of_the_answers_are_faulty(serve: Serve, reads: Reads, seed: int) -> None:
    server = serve({"a.tar": CONTENTS}, *hostile_server.PASSING, share=0.33, seed=seed)
    for turn in range(8):
        # With sixteen connections every request is for one piece.
        settings = reads(timeout_s=0.5, tries=12, connections=16, cache_dir=f"{reads().cache_dir}-{turn}")
        shard = open_remote(server.url("a.tar"), settings)
        if turn % 2:
            shard.expect(checksums_of(CONTENTS))
            shard.prefetch(random_spans(10, turn))
            assert read_all(shard, random_spans(300, seed)) == 0
        assert b"".join(shard.stream()) == CONTENTS
    assert server.suffered.total() >= 15


def test_a_server_that_ignores_a_range_once_is_asked_again(serve: Serve, reads: Reads) -> None:
    def whole_once(answer: hostile_server.Answer, draw: random.Random) -> None:
        if server.requests["a.tar"] == 1:
            hostile_server.whole_body(answer, draw)

    server = serve({"a.tar": CONTENTS}, whole_once, share=1.0)
    assert open_remote(server.url("a.tar"), reads()).stat().size == SIZE


@pytest.mark.parametrize("fault", [hostile_server.short_body, hostile_server.stall], ids=lambda fault: fault.__name__)
def test_what_came_before_a_failure_is_not_asked_for_again(
    serve: Serve, reads: Reads, fault: hostile_server.Fault
) -> None:
    def half_way(answer: hostile_server.Answer, draw: random.Random) -> None:
        if len(answer.body) > PIECE_BYTES // 2:
            fault(answer, draw)
            answer.sent_bytes = len(answer.body) // 2

    server = serve({"a.tar": CONTENTS}, half_way, share=1.0)
    shard = open_remote(server.url("a.tar"), reads(timeout_s=2.0))
    shard.expect(checksums_of(CONTENTS))
    assert shard.read(0, PIECE_BYTES) == CONTENTS[:PIECE_BYTES]
    assert server.ranges == [(0, PIECE_BYTES), (PIECE_BYTES // 2, PIECE_BYTES)]


PERMANENT = {
    hostile_server.reset: "could not be read in 4 tries",
    hostile_server.short_body: "the body ended early",
    hostile_server.stall: "no byte for 1 s",
    hostile_server.busy: "HTTP (500|503|429)",
    hostile_server.wrong_length: "Content-Length",
    hostile_server.wrong_range: "asked for bytes",
    hostile_server.no_range: "no usable Content-Range",
    hostile_server.whole_body: r"in 2 tries.*ignores ranges.*: use a server that answers ranges$",
    hostile_server.flipped_bit: (
        r"damaged: upload it again; .* remove its index, the file \*\.stoker-idx\.npz beside it"
    ),
    hostile_server.changed_etag: "changed after it was indexed",
}


@pytest.mark.parametrize("fault", PERMANENT, ids=lambda fault: fault.__name__)
def test_a_fault_that_does_not_pass_ends_the_read_with_its_cause(
    serve: Serve, reads: Reads, fault: hostile_server.Fault
) -> None:
    server = serve({"dir/a.tar": CONTENTS}, fault, share=1.0)
    shard = open_remote(server.url("dir/a.tar"), reads(timeout_s=1.0, tries=4))
    shard.expect(checksums_of(CONTENTS))
    with pytest.raises(DataError, match=rf"^{re.escape(server.url('dir/a.tar'))}: .*({PERMANENT[fault]})"):
        shard.read(5, 100)
    # A racing request may be under way when the last try fails.
    assert 1 <= server.requests["dir/a.tar"] <= 4 + 1


def test_bits_that_flip_differently_each_time_never_reach_an_index(serve: Serve, reads: Reads) -> None:
    server = serve({"a.tar": CONTENTS}, hostile_server.flipped_bit, share=1.0)
    shard = open_remote(server.url("a.tar"), reads(tries=3))
    with pytest.raises(DataError, match=r"came differently .* 4 times"):
        list(shard.stream())


@pytest.mark.parametrize("indexed", [True, False])
def test_without_tls_and_without_checksums_each_byte_is_asked_for_twice(
    serve: Serve, reads: Reads, indexed: bool
) -> None:
    server = serve({"a.tar": CONTENTS})
    shard = open_remote(server.url("a.tar"), reads())
    if indexed:
        shard.expect(checksums_of(CONTENTS))
    shard.stat()
    server.ranges.clear()
    assert b"".join(shard.stream()) == CONTENTS
    assert sum(stop - start for start, stop in server.ranges) == (SIZE if indexed else 2 * SIZE)
    server.ranges.clear()
    assert read_all(shard, random_spans(100, 1)) == 0
    assert server.ranges == []


@pytest.mark.parametrize("path", ["absent.tar", "dir/absent.tar"])
def test_what_is_not_there_is_asked_for_once(serve: Serve, reads: Reads, path: str) -> None:
    server = serve({"a.tar": CONTENTS})
    shard = open_remote(server.url(path), reads())
    with pytest.raises(DataError, match=r"absent.tar: not found: .* \(HTTP 404\)"):
        shard.read(0, 1)
    assert server.requests[path] == 1


def test_a_server_that_is_not_there_ends_in_a_message_without_secrets(serve: Serve, reads: Reads) -> None:
    server = serve({})
    server.close()
    address = server.url("a.tar").removeprefix("http://")
    shard = open_remote(f"http://me:hunter2@{address}?token=s3cret&X-Amz-Signature=abc", reads(tries=2))
    with pytest.raises(DataError, match=r"a\.tar\?…: .*in 2 tries.*\(Connection refused\): check") as caught:
        shard.stat()
    for shown in (str(caught.value), shard.identity, shard.name, repr(shard._address)):
        assert not re.search("hunter2|s3cret|abc", shown)


def test_an_unknown_host_is_called_so(reads: Reads) -> None:
    with pytest.raises(DataError, match=r"a\.tar: .*in 2 tries.*: unknown host: correct the address"):
        open_remote("http://no-such-host.invalid/a.tar", reads(tries=2)).stat()


@pytest.mark.parametrize("timeout_s", [1.6, 20.0])
def test_retry_after_is_waited_for_and_not_cut_short_by_a_racing_request(
    serve: Serve, reads: Reads, timeout_s: float
) -> None:
    asked_at: list[float] = []

    def busy_once(answer: hostile_server.Answer, draw: random.Random) -> None:
        asked_at.append(time.monotonic())
        if len(asked_at) == 1:
            hostile_server.busy(answer, draw)
            answer.headers["Retry-After"] = "1"

    server = serve({"a.tar": CONTENTS}, busy_once, share=1.0)
    # A range counts as slow after half of a time-out that is this short.
    assert open_remote(server.url("a.tar"), reads(timeout_s=timeout_s)).stat().size == SIZE
    assert asked_at[1] - asked_at[0] >= 1.0


def test_a_range_far_slower_than_its_siblings_is_raced_by_a_second_request(serve: Serve, reads: Reads) -> None:
    release = threading.Event()
    slow = (6 * PIECE_BYTES, 7 * PIECE_BYTES)

    def hang_once(answer: hostile_server.Answer, draw: random.Random) -> None:
        if server.ranges[-1] == slow and server.ranges.count(slow) == 1:
            release.wait(60.0)

    server = serve({"a.tar": CONTENTS}, share=0.0)
    shard = open_remote(server.url("a.tar"), reads(timeout_s=60.0))
    shard.expect(checksums_of(CONTENTS))
    pieces = [0, 1, 2, 3, 4, 5, 7, 8]
    assert read_all(shard, [(i * PIECE_BYTES, 10) for i in pieces], threads=1) == 0
    server.faults, server.share = (hang_once,), 1.0
    began = time.monotonic()
    assert shard.read(slow[0], 1000) == CONTENTS[slow[0] : slow[0] + 1000]
    assert time.monotonic() - began < 30.0
    assert server.ranges.count(slow) == 2
    release.set()


def test_an_object_changed_between_two_reads_is_refused(serve: Serve, reads: Reads) -> None:
    server = serve({"a.tar": CONTENTS})
    shard = open_remote(server.url("a.tar"), reads())
    assert shard.read(0, 10) == CONTENTS[:10]
    server.faults, server.share = (hostile_server.changed_etag,), 1.0
    with pytest.raises(DataError, match="changed after it was indexed"):
        shard.read(5 * PIECE_BYTES, 10)
    assert shard.stat().version == '"another"'


def test_empty_and_absent_neighbours_are_told_apart(serve: Serve, reads: Reads) -> None:
    server = serve({"a.tar": CONTENTS, "a.tar.idx": b"", "a.tar.json": CONTENTS[:70_000]})
    shard = open_remote(server.url("a.tar"), reads())
    assert [shard.beside(suffix) for suffix in (".idx", ".json", ".none")] == [b"", CONTENTS[:70_000], None]


def test_reads_beyond_the_end_are_refused(serve: Serve, reads: Reads) -> None:
    shard = open_remote(serve({"a.tar": CONTENTS}).url("a.tar"), reads())
    with pytest.raises(DataError, match=f"it has {SIZE}"):
        shard.read(SIZE - 5, 6)
