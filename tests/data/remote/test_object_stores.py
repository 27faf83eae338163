"""Object stores: a server that speaks S3 on loopback (moto's), and what addresses and credentials become."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from configs.errors import DataError
from configs.sections.data_section import RemoteReads
from data.remote.address import parse_address
from data.remote.byte_checks import PIECE_BYTES
from data.remote.list_objects import list_remote
from data.remote.remote_shard import open_remote
from data.remote.signed_url import requests_for
from tests.support.data.shard_contents import checksums_of, contents_of

Reads = Callable[..., RemoteReads]
CONTENTS = contents_of(3 * PIECE_BYTES + 99)
KEYS = [
    "set/train-000.tar",
    "set/train-001.tar",
    "set/train-001.tar.idx",
    "set/deep/train-002.tar",
    "set/odd ü+%20?.tar",
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client for the bucket `shards`, and the environment of a user who may read it."""
    settings = {
        "AWS_ACCESS_KEY_ID": "AKTEST",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for key in KEYS:
        client.put_object(Bucket="shards", Key=key, Body=b"index" if key.endswith(".idx") else CONTENTS)
    return client


def test_globs_list_a_bucket(bucket: Any) -> None:
    assert list_remote("s3://shards/set/train-*.tar") == [f"s3://shards/{key}" for key in KEYS[:2]]
    assert list_remote("s3://shards/set/**.tar") == sorted(f"s3://shards/{key}" for key in KEYS if key.endswith(".tar"))
    assert list_remote("s3://shards/**/train-000.tar") == list_remote("s3://shards/set/**/train-000.tar")
    assert list_remote("s3://shards/set/**/train-000.tar") == [f"s3://shards/{KEYS[0]}"]
    assert list_remote("s3://shards/s?t/train-00[1-9].tar") == [f"s3://shards/{KEYS[1]}"]
    assert list_remote("s3://shards/none-*.tar") == []


def test_a_bucket_that_is_not_there_and_a_web_server_cannot_be_listed(bucket: Any) -> None:
    with pytest.raises(DataError, match=r"s3://absent/\*\.tar: cannot be listed"):
        list_remote("s3://absent/*.tar")
    with pytest.raises(DataError, match=r"web servers do not list files: write a brace range"):
        list_remote("https://host/train-*.tar")


@pytest.mark.parametrize("key", KEYS)
def test_objects_read_stream_and_come_from_the_cache_the_second_time(bucket: Any, reads: Reads, key: str) -> None:
    shard = open_remote(f"s3://shards/{key}", reads())
    contents = b"index" if key.endswith(".idx") else CONTENTS
    assert b"".join(shard.stream()) == contents
    checksums = checksums_of(contents, shard.stat().version)
    bucket.delete_object(Bucket="shards", Key=key)
    again = open_remote(f"s3://shards/{key}", reads())
    again.expect(checksums)
    assert again.read(1, len(contents) - 1) == contents[1:]
    with pytest.raises(DataError, match=r"not found: .* \(HTTP 404 NoSuchKey\)"):
        again.stat()


def test_neighbours_are_found(bucket: Any, reads: Reads) -> None:
    shard = open_remote("s3://shards/set/train-001.tar", reads())
    assert [shard.beside(suffix) for suffix in (".idx", ".json")] == [b"index", None]


def test_an_object_that_was_overwritten_is_refused(bucket: Any, reads: Reads) -> None:
    shard = open_remote("s3://shards/set/train-000.tar", reads())
    assert shard.read(0, 10) == CONTENTS[:10]
    bucket.put_object(Bucket="shards", Key="set/train-000.tar", Body=contents_of(len(CONTENTS), seed=1))
    with pytest.raises(DataError, match="changed after it was indexed"):
        shard.read(2 * PIECE_BYTES, 10)


def test_the_keys_of_a_profile_sign_where_the_environment_names_none(
    bucket: Any, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[work]\naws_access_key_id = AKPROFILE\naws_secret_access_key = x%y\n")
    for name, value in {"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_PROFILE": "work"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "X-Amz-Credential=AKPROFILE%2F" in requests_for(parse_address("s3://shards/a.tar"), os.environ)().url
    assert open_remote(f"s3://shards/{KEYS[0]}", reads()).read(0, 9) == CONTENTS[:9]


def test_a_process_forked_after_a_store_was_used_is_told_to_spawn(bucket: Any, reads: Reads) -> None:
    shard = open_remote(f"s3://shards/{KEYS[0]}", reads())
    child = os.fork()
    if child == 0:
        try:
            open_remote(f"s3://shards/{KEYS[1]}", reads())
        except DataError as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert shard.read(0, 9) == CONTENTS[:9]


def test_an_endpoint_without_tls_must_be_allowed(bucket: Any, monkeypatch: pytest.MonkeyPatch, reads: Reads) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(DataError, match=r"s3://shards/a\.tar: the endpoint .* has no TLS: set AWS_ALLOW_HTTP=true"):
        open_remote("s3://shards/a.tar", reads())


@pytest.mark.parametrize(
    ("url", "environment", "asked"),
    [
        ("s3://b/k ü.tar", {"AWS_REGION": "eu-west-1"}, r"https://s3\.eu-west-1\.amazonaws\.com/b/k%20%C3%BC\.tar"),
        ("gs://b/k.tar", {}, r"https://storage\.googleapis\.com/b/k\.tar"),
        ("az://c/k.tar", {"AZURE_STORAGE_ACCOUNT_NAME": "a"}, r"https://a\.blob\.core\.windows\.net/c/k\.tar"),
        (
            "az://c/k.tar",
            {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"},
            r"https://a\.blob\.core\.windows\.net/c/k\.tar\?sv=1&sig=x",
        ),
        ("https://host/a%20b.tar?x=1", {}, r"https://host/a%20b\.tar\?x=1"),
    ],
)
def test_without_credentials_objects_are_asked_for_unsigned(url: str, environment: dict[str, str], asked: str) -> None:
    switches = dict.fromkeys(("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK", "AZURE_SKIP_SIGNATURE"), "true")
    off = {**switches, "AWS_SHARED_CREDENTIALS_FILE": "/absent"}
    assert re.fullmatch(asked, requests_for(parse_address(url), {**off, **environment})().url)


def test_tokens_leave_the_identity_alone_and_what_selects_contents_does_not() -> None:
    plain, signed, other = (
        parse_address(f"https://me:pw@host/a.tar?{query}").identity
        for query in ("id=1", "id=1&X-Amz-Signature=abc&token=t", "id=2")
    )
    assert plain == signed != other
    assert not re.search("me|pw|abc", plain)


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///key", "ftp://host/a.tar", "https://host", "a.tar"])
def test_incomplete_and_unknown_addresses_are_refused(url: str) -> None:
    with pytest.raises(DataError, match="write"):
        parse_address(url)
