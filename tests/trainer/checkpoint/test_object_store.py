"""Checkpoints in an object store: the same rules, and what a network does to requests. A real S3 server on loopback."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from configs.errors import CheckpointError, RunFolderError
from configs.load import dump_recipe
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.ledger_events import event
from tests.support.processes import run_in_processes
from tests.support.training.runs import GPT, digests, events, history, recipe_of, run_jobs, write_text_shards
from tests.support.training.small_commits import ALONE, NEW, OLD, all_extents, header, share_of_rank
from trainer import cli
from trainer.checkpoint import object_store
from trainer.checkpoint.commit import Commit
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.object_store import ObjectCheckpointStore, open_object_store
from trainer.checkpoint.rank_receipts import Receipts
from trainer.checkpoint.reader import CheckpointReader, open_newest, verify
from trainer.checkpoint.store_protocol import SaveId
from trainer.launch.preflight import check_places

Plan = Callable[[str, str, int], Fault | None]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an S3 server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """A fresh bucket named `bucket`, behind a proxy that the environment names as the endpoint; pauses are short."""
    monkeypatch.setattr(object_store, "_FIRST_PAUSE_S", 0.01)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    with FaultProxy(server) as proxy:
        for name, value in {**keys, "AWS_ENDPOINT_URL": proxy.url, "AWS_ALLOW_HTTP": "true"}.items():
            monkeypatch.setenv(name, value)
        client: Any = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
        if any(bucket["Name"] == "bucket" for bucket in client.list_buckets()["Buckets"]):
            for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
                client.delete_object(Bucket="bucket", Key=entry["Key"])
        else:
            client.create_bucket(Bucket="bucket")
        yield proxy


def open_store() -> ObjectCheckpointStore:
    return ObjectCheckpointStore(open_object_store("s3://bucket/run", os.environ), "s3://bucket/run")


def commit(root: Path, step: int, attempt: int = 1) -> bool:
    """A checkpoint of one rank; whether it was read back as it was written."""
    store, save = open_store(), SaveId(attempt, 1, step)
    acts = Commit(store, Receipts(root, save), save, rank=0, ranks=1)
    stored, file = acts.store_share(share_of_rank(step, 0, 1))
    acts.publish(header(step, attempt))
    acts.read_back(stored, file)
    acts.await_read_back()
    return True


def values_of(step: int) -> list[float]:
    folder = open_store().at(step)
    with CheckpointReader(folder, verify(folder)) as reader:
        read = reader.read("master", "weight")
        assert read is not None
        return read(0, 3000).unique().tolist()


def once(method: str, part: str, fault: Fault, times: int = 1) -> Plan:
    return lambda m, path, n: fault if m == method and part in path and n < times else None


@pytest.mark.parametrize(
    "plan",
    [
        once("PUT", "rank-0", 503, 3),
        once("PUT", "rank-0", "reset", 2),
        once("PUT", "rank-0", "lost"),
        once("PUT", "manifest", 503, 2),
        once("PUT", "manifest", 409, 2),
        once("PUT", "manifest", "reset"),
        once("PUT", "manifest", "lost"),
        once("GET", "rank-0", 503, 2),
        once("GET", "rank-0", "lost"),
    ],
    ids=["503", "reset", "lost", "m-503", "m-409", "m-reset", "m-lost", "r-503", "r-lost"],
)
def test_a_commit_goes_through_whatever_befalls_a_few_requests(proxy: FaultProxy, tmp_path: Path, plan: Plan) -> None:
    proxy.plan = plan
    assert commit(tmp_path, NEW)
    assert proxy.done
    proxy.plan = lambda *_: None
    assert open_store().steps() == [NEW]
    assert values_of(NEW) == [NEW]


def test_a_bucket_that_is_not_there_is_told_in_a_line(proxy: FaultProxy, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, GPT, "run", checkpoint={"dir": "s3://buckets"})
    with pytest.raises(RunFolderError, match="checkpoints cannot be kept in s3://buckets/run") as refused:
        check_places(recipe)
    assert len(str(refused.value).splitlines()) == 1
    check_places(recipe_of(tmp_path, GPT, "run", checkpoint={"dir": "s3://bucket"}))
    assert open_store()._objects.paths() == []


def test_a_run_whose_bucket_is_away_still_has_a_status(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, GPT, "run", checkpoint={"dir": "s3://buckets"})
    folder = RunFolder.of(recipe)
    folder.make()
    folder.recipe.write_text(dump_recipe(recipe))
    told = []
    for command in (["status"], ["checkpoint", "list"]):
        monkeypatch.setattr("sys.argv", ["stoker", *command, str(folder.root)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told.append((ended.value.code or 0, capsys.readouterr()))
    assert told[0][0] == 0
    assert "checkpoints: s3://buckets/run cannot be read: " in told[0][1].out
    assert told[1][0] == 1
    assert told[1][1].err.startswith("stoker: error: s3://buckets/run cannot be read: ")
    assert len(told[1][1].err.splitlines()) == 1


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_manifest_gives_way_only_to_one_of_a_newer_attempt(proxy: FaultProxy, tmp_path: Path, attempt: int) -> None:
    commit(tmp_path, NEW, attempt=2)
    store, save = open_store(), SaveId(attempt, 2, NEW)
    acts = Commit(store, Receipts(tmp_path, save), save, rank=0, ranks=1)
    acts.read_back(*acts.store_share(share_of_rank(NEW, 0, 1)))
    acts.publish(header(NEW, attempt))
    store.clean()
    standing = "3-2-" if attempt == 3 else "2-1-"
    assert [path.split("/")[1][:4] for path in store._objects.paths()] == [standing, "mani"]
    assert values_of(NEW) == [NEW]


def _commit_of_an_attempt_that_is_stopped(root: Path) -> str:
    (root / "pid").write_text(str(os.getpid()))
    ledger = Ledger(root / "ledger.jsonl")
    acts = acts_of(1, root, lambda: ledger.attempts() > 1)
    acts.store_share(share_of_rank(NEW, 0, 1))
    acts.publish(header(NEW, 1))
    return "published"


def acts_of(attempt: int, root: Path, superseded: Callable[[], bool]) -> Commit:
    save = SaveId(attempt, 1, NEW)
    return Commit(open_store(), Receipts(root, save), save, rank=0, ranks=1, superseded=superseded)


def test_a_manifest_that_a_stopped_rank_puts_after_its_attempt_is_superseded_does_no_harm(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    """There is no rename: its last request, held back while the next attempt begins, cannot be prevented."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(event("attempt_started"))
    commit(tmp_path, OLD)
    seen: list[list[int]] = []

    def plan(method: str, path: str, n: int) -> None:
        if method == "PUT" and "step-00000010/manifest" in path and not seen:
            seen.append([])
            old = int((tmp_path / "pid").read_text())
            os.kill(old, signal.SIGSTOP)
            ledger.append(event("attempt_started"))
            store = open_store()
            store.clean()
            seen.append(store.steps())
            os.kill(old, signal.SIGCONT)

    proxy.plan = plan
    run_in_processes(_commit_of_an_attempt_that_is_stopped, 1, tmp_path / "store", tmp_path)
    proxy.plan = lambda *_: None
    assert seen == [[], [OLD]]
    assert open_store().steps() == [OLD, NEW]  # and NEW names files that are gone
    told: list[str] = []
    found: list[Manifest] = []
    reader = open_newest(open_store(), ALONE, lambda: all_extents(found[-1]), found.append, told.append)
    assert reader is not None
    assert reader.manifest.step == OLD
    assert "is missing" in told[0]


def test_a_server_that_stays_down_is_an_error_and_leaves_the_old_checkpoint(proxy: FaultProxy, tmp_path: Path) -> None:
    commit(tmp_path, OLD)
    proxy.plan = lambda method, path, n: 403 if method == "PUT" and "manifest" in path else None
    with pytest.raises(OSError, match="manifest"):
        commit(tmp_path, NEW)
    proxy.plan = lambda *_: None
    store = open_store()
    assert store.steps() == [OLD]
    assert len(store._objects.paths()) == 3  # the part of the failed one lies there
    store.clean()
    assert len(store._objects.paths()) == 2
    assert values_of(OLD) == [OLD]


def test_workers_ask_a_store_that_is_away_for_longer_and_others_tell_at_once(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path, NEW)
    monkeypatch.setattr(object_store, "_LONGEST_PAUSE_S", 0.2)
    proxy.plan = once("GET", "manifest", 400, 6 + 7)  # which obstore does not try again by itself
    with pytest.raises(OSError, match="manifest"):
        open_store().at(NEW).manifest()
    objects = open_object_store("s3://bucket/run", os.environ)
    assert ObjectCheckpointStore(objects, "s3://bucket/run", retry_s=400.0).at(NEW).manifest()
    assert len(proxy.done) == 13


def test_damage_is_named_and_put_aside_and_the_one_before_is_used(proxy: FaultProxy, tmp_path: Path) -> None:
    for step in (OLD, NEW):
        commit(tmp_path, step)
    store = open_store()
    name = next(path for path in store._objects.paths() if "step-00000010" in path and "rank" in path)
    content = bytearray(store._objects.get(name))
    content[-5] ^= 16
    store._objects.put(name, memoryview(bytes(content)))
    told: list[str] = []
    seen: list[Manifest] = []
    reader = open_newest(store, ALONE, lambda: all_extents(seen[-1]), seen.append, told.append)
    assert reader is not None
    assert reader.manifest.step == OLD
    assert "rank-0.safetensors is damaged" in told[0]
    assert store.steps() == [OLD]
    assert store.damaged()
    store._objects.delete([path for path in store._objects.paths() if path.startswith("step-00000005")])
    with pytest.raises(CheckpointError, match="every checkpoint"):
        open_newest(store, ALONE, lambda: [], seen.append, told.append)


def test_a_part_larger_than_one_request_is_put_in_parts_with_retries(proxy: FaultProxy) -> None:
    proxy.plan = lambda method, path, n: 503 if method == "PUT" and "partNumber=2" in path and n == 0 else None
    image = memoryview(np.random.default_rng(7).integers(0, 256, 20 << 20, dtype=np.uint8).tobytes())
    store = open_store()
    store.staging(SaveId(1, 1, NEW)).write("rank-0", image)
    assert [fault for _, path, fault in proxy.done] == [503]
    assert store._objects.get("step-00000010/1-1-00000010/rank-0") == image


def test_a_run_keeps_its_checkpoints_in_a_bucket_and_resumes_from_there(proxy: FaultProxy, tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    place = {"every_steps": 3, "keep_last": 2, "dir": "s3://bucket/runs"}
    whole = recipe_of(tmp_path, GPT, "whole")
    cut = recipe_of(tmp_path, GPT, "cut", checkpoint=place)
    run_in_processes(run_jobs, 2, tmp_path / "store", [(whole, None), (cut, 7), (cut, None)])
    assert history(whole) == history(cut)
    assert digests(whole, 10) == digests(cut, 10)
    assert [event["step"] for event in events(cut, "resumed")] == [7]
    store = ObjectCheckpointStore(open_object_store("s3://bucket/runs/cut", os.environ), "")
    assert store.steps() == [9, 10]
    assert len({path.split("/")[0] for path in store._objects.paths()}) == 2
