"""Shards far away are read for their index by one host of a run, not by each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.sections.data_section import RemoteReads
from data.index import shard_index, sidecar
from data.index.open_catalog import open_catalog
from data.pack.shard_writer import write_shard
from tests.support.data.hostile_server import HostileServer


def test_a_host_that_comes_later_finds_the_indexes_in_the_runs_folder(
    serve: Callable[..., HostileServer],
    reads: Callable[..., RemoteReads],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sidecar, "_shared_folders", [])
    monkeypatch.setattr(sidecar, "_remote_digests", set())
    write_shard(tmp_path / "a.tar", [(f"{number:04d}", {"txt": b"x" * 100}) for number in range(50)])
    url = serve({"a.tar": (tmp_path / "a.tar").read_bytes()}).url("a.tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first host"))
    catalog = open_catalog(url, reads())
    sidecar.share_in(tmp_path / "run")
    sidecar.publish()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second host"))
    monkeypatch.setattr(shard_index, "build_index", lambda *_: pytest.fail("the shard is read once more"))
    assert open_catalog(url, reads(cache_dir=str(tmp_path / "other cache"))).count == catalog.count == 50
