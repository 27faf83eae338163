"""What an HTTP answer to a range request means. Pure."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from configs.errors import DataError
from data.shards.shard import Stat

LONGEST_RETRY_AFTER_S = 60.0
MORE_TRIES = "check the server and the network, or raise data.remote.tries or timeout_s"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_PASSING = (408, 429)


class RequestFailedError(Exception):
    """A failure that may pass. `whole`: everything was sent instead of the range; `remedy`: if it does not pass."""

    def __init__(self, cause: str, retry_after_s: float = 0.0, whole: bool = False, remedy: str = MORE_TRIES) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s
        self.whole = whole
        self.remedy = remedy


class NotFoundError(DataError):
    """There is no such object, as far as those who ask may know."""


@dataclass(frozen=True)
class Range:
    """Bytes start … stop-1 of an object; `stat` is what it was when it was first looked at, None: not yet."""

    start: int
    stop: int
    stat: Stat | None = None


def check_answer(name: str, status: int, headers: Mapping[str, str], body: bytes, asked: Range) -> Stat:
    """The object as the answer has it, if the answer is to what was asked.

    `body` is the beginning of the answer to a refused request. RequestFailedError: worth another try. DataError: final.
    """
    # An empty object has no first byte to ask for.
    if status == 416 and asked.stat is None and headers.get("Content-Range") == "bytes */0":
        return Stat(0, version(headers))
    if status == 200:
        cause, remedy = "the server ignores ranges and sends everything (HTTP 200)", "use a server that answers ranges"
        raise RequestFailedError(cause, whole=True, remedy=remedy)
    if status in _PASSING or status >= 500:
        raise RequestFailedError(f"HTTP {status}", _retry_after_s(headers.get("Retry-After")))
    if status != 206:
        raise _refusal(name, status, headers, body)
    # Offsets would count compressed bytes.
    if headers.get("Content-Encoding", "identity") != "identity":
        raise DataError(f"{name}: the server compresses the shard on its way: serve it as it is")
    return _stat(name, headers, asked)


def version(headers: Mapping[str, str]) -> str:
    """Empty when the server gives neither ETag nor time."""
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def only_if_unchanged(asked: Range) -> dict[str, str]:
    """A weak ETag never matches If-Match (RFC 9110, 13.1.1); it is compared in the answer."""
    known = asked.stat.version if asked.stat else ""
    return {"If-Match": known} if known.startswith('"') else {}


def changed_error(name: str) -> DataError:
    """The error for an object whose version or size is no longer the one that was indexed."""
    return DataError(
        f"{name}: the shard changed after it was indexed: leave shards alone while they are read; "
        "start again to index it anew"
    )


def _stat(name: str, headers: Mapping[str, str], asked: Range) -> Stat:
    span = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if span is None:
        raise RequestFailedError(
            f"the answer has no usable Content-Range ({headers.get('Content-Range', 'none')!r:.60})"
        )
    # Bytes of another range would be taken for those asked for, and kept.
    first, last, size = map(int, span.groups())
    stat = Stat(size, version(headers))
    if asked.stat is not None and stat.version != asked.stat.version:
        raise changed_error(name)
    stop = min(asked.stop, asked.stat.size if asked.stat else size)
    if (first, last + 1) != (asked.start, stop) or (asked.stat and size != asked.stat.size):
        wanted = f"{asked.start}-{stop - 1}" + (f"/{asked.stat.size}" if asked.stat else "")
        raise RequestFailedError(f"asked for bytes {wanted}, the answer is for {first}-{last}/{size}")
    length = headers.get("Content-Length", str(stop - first))
    if length != str(stop - first):
        raise RequestFailedError(f"the answer has Content-Length {length:.20} for {stop - first} bytes")
    return stat


def _refusal(name: str, status: int, headers: Mapping[str, str], body: bytes) -> DataError:
    code = f" {match[1].decode()}" if (match := _ERROR_CODE.search(body)) else ""
    if region := headers.get("x-amz-bucket-region") if status in (301, 307, 400) else None:
        return DataError(f"{name}: the bucket lies in region {region:.40}: set AWS_REGION={region:.40}")
    if status == 412:
        return changed_error(name)
    what_to_do = {
        401: "access is refused: give credentials (see docs/remote.md)",
        403: "access is refused: check the credentials and their rights (see docs/remote.md)",
        404: "not found: correct the address, or upload the shard",
        410: "it is gone: correct the address, or upload the shard",
        416: "it is shorter than when it was indexed: upload it again, or start again to index it anew",
    }.get(status, "the server refuses the request: check the address, the region and the credentials")
    kind = NotFoundError if status in (403, 404, 410) else DataError
    return kind(f"{name}: {what_to_do} (HTTP {status}{code})")


def _retry_after_s(value: str | None) -> float:
    """Seconds or a date (RFC 9110, 10.2.3), bounded; 0 when absent or not understood."""
    if value is None:
        return 0.0
    try:
        wait_s = float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)
