"""Spot notices, from a server that answers as the providers' metadata services do."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.cloud.spot_notice import is_preempted

TOKEN = "AQAEA"
CALM = {"aws": (404, "not found"), "gcp": (200, "FALSE"), "azure": (200, '{"DocumentIncarnation": 1, "Events": []}')}
TAKEN = {
    "aws": (200, '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}'),
    "gcp": (200, "TRUE"),
    "azure": (200, '{"DocumentIncarnation": 2, "Events": [{"EventId": "a", "EventType": "Preempt"}]}'),
}
PATHS = {
    "/latest/meta-data/spot/instance-action": ("aws", "X-aws-ec2-metadata-token", TOKEN),
    "/computeMetadata/v1/instance/preempted": ("gcp", "Metadata-Flavor", "Google"),
    "/metadata/scheduledevents?api-version=2020-07-01": ("azure", "Metadata", "true"),
}


class Metadata(ThreadingHTTPServer):
    """Refuses whoever does not send the provider's header, as the real ones do."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = dict(CALM)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        wanted = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if wanted else 400, TOKEN)

    def do_GET(self) -> None:
        provider, header, value = PATHS[self.path]
        self._answer(*(self.server.answers[provider] if self.headers[header] == value else (401, "unauthorized")))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_a_host_is_taken_away_when_its_provider_says_so(
    metadata: Metadata, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    assert not is_preempted(provider, metadata.url)
    metadata.answers[provider] = TAKEN[provider]
    assert is_preempted(provider, metadata.url)


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
@pytest.mark.parametrize("answer", [(500, "oops"), (200, "<html>"), (200, "{}"), (200, "[1]")])
def test_an_answer_that_is_none_is_an_error(metadata: Metadata, provider: str, answer: tuple[int, str]) -> None:
    metadata.answers[provider] = answer
    with pytest.raises(OSError, match=r"500|metadata service answered"):
        is_preempted(provider, metadata.url)


def test_a_service_that_is_not_there_is_an_error(metadata: Metadata) -> None:
    with pytest.raises(OSError, match="refused"):
        is_preempted("gcp", "http://127.0.0.1:9")
