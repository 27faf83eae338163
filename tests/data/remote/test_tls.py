"""https:// against a server whose certificate the test makes: which certificates are accepted, and what TLS spares."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from configs.errors import DataError
from configs.sections.data_section import RemoteReads
from data.remote.remote_shard import open_remote
from tests.support.data import hostile_server
from tests.support.data.shard_contents import checksums_of, contents_of

CONTENTS = contents_of(3 << 20)
DAY = timedelta(days=1)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; its key lies beside it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*plain))
    (tmp_path / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return tmp_path / "cert.pem"


@pytest.fixture
def serve_tls(
    certificate: Path, serve: Callable[..., hostile_server.HostileServer]
) -> Callable[..., hostile_server.HostileServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return lambda *faults, **settings: serve({"a.tar": CONTENTS}, *faults, tls=context, **settings)


def test_over_tls_each_byte_is_asked_for_once_and_faults_cost_none(
    serve_tls: Callable[..., hostile_server.HostileServer],
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
    shard = open_remote(serve_tls(*hostile_server.PASSING, share=0.3, seed=3).url("a.tar"), reads(tries=40))
    shard.expect(checksums_of(CONTENTS))
    assert b"".join(shard.stream()) == CONTENTS


def test_a_certificate_that_nobody_vouches_for_or_of_another_name_ends_the_read_at_once(
    serve_tls: Callable[..., hostile_server.HostileServer],
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
