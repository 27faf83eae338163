"""https:// against a server whose certificate the test makes: whom to believe, and what belief spares."""

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import DataError
from configs.recipe_data import RemoteReads
from data.remote.remote_shard import open_remote
from tests.data.remote import hostile
from tests.data.remote.conftest import checksums_of, contents_of

CONTENTS = contents_of(3 << 20)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; its key lies beside it."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test".split()
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem")]
    subprocess.run([*command, *names, "-out", str(tmp_path / "cert.pem")], check=True, capture_output=True)
    return tmp_path / "cert.pem"


@pytest.fixture
def serve_tls(certificate: Path, serve: Callable[..., hostile.HostileServer]) -> Callable[..., hostile.HostileServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return lambda *faults, **settings: serve({"a.tar": CONTENTS}, *faults, tls=context, **settings)


def test_over_tls_each_byte_is_asked_for_once_and_faults_cost_none(
    serve_tls: Callable[..., hostile.HostileServer],
    reads: Callable[..., RemoteReads],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    calm = serve_tls()
    shard = open_remote(calm.url("a.tar"), reads())
    shard.stat()
    calm.ranges.clear()
    assert b"".join(shard.stream()) == CONTENTS
    assert sum(stop - start for start, stop in calm.ranges) == len(CONTENTS)
    shard = open_remote(serve_tls(*hostile.PASSING, share=0.3, seed=3).url("a.tar"), reads(tries=40))
    shard.expect(checksums_of(CONTENTS))
    assert b"".join(shard.stream()) == CONTENTS


def test_a_certificate_that_nobody_vouches_for_or_of_another_name_ends_the_read_at_once(
    serve_tls: Callable[..., hostile.HostileServer],
    reads: Callable[..., RemoteReads],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve_tls()
    with pytest.raises(DataError, match="certificate"):
        open_remote(server.url("a.tar"), reads()).stat()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(DataError, match="certificate"):
        open_remote(server.url("a.tar").replace("127.0.0.1", "localhost"), reads()).stat()
    assert not server.ranges
