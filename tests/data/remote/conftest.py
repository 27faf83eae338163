"""Servers, contents and settings for the tests of remote shards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.sections.data_section import RemoteReads
from data.remote import retried_download, shared_connections
from tests.support.data.hostile_server import HostileServer


@pytest.fixture(autouse=True)
def no_real_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests neither use what lies on this machine nor ask the cloud it may run in."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK", "AZURE_SKIP_SIGNATURE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))


@pytest.fixture(autouse=True)
def own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in memory from one test to the next, and pauses between tries are short."""
    monkeypatch.setattr(shared_connections, "_shared_connections", {})
    monkeypatch.setattr(retried_download, "FIRST_PAUSE_S", 0.002)


@pytest.fixture
def reads(tmp_path: Path) -> Callable[..., RemoteReads]:
    def make(**changes: Any) -> RemoteReads:
        return RemoteReads(**{"cache_dir": str(tmp_path / "cache"), "timeout_s": 2.0, "tries": 8, **changes})

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., HostileServer]]:
    servers: list[HostileServer] = []

    def start(objects: dict[str, bytes], *faults: Any, share: float = 0.0, **settings: Any) -> HostileServer:
        servers.append(HostileServer(objects, faults, share, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
