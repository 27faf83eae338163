"""Packing gives the same bytes with any number of processes, after kills and after a full disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.pack.packing_run import PackOptions, PackProgress
from data.pack.partial_folder import partial_folder, work_folder
from data.pack.shard_writer import ShardLimits
from data.pack_inputs.pack_kinds import pack_table, pack_text
from data.pack_inputs.table_inputs import Columns
from tests.support.data.pack_gate import gated, make_gate
from tests.support.data.packed_folder import digests, tars

LIMITS = ShardLimits(bytes=200_000)
_HERE = PackOptions()
STOKER = str(Path(sys.executable).with_name("stoker"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    letters = np.random.default_rng(0)
    for number in range(600):
        text = letters.integers(97, 123, int(letters.integers(1, 8000)), dtype=np.uint8)
        (folder / f"{number}.txt").write_bytes(text.tobytes())
    (folder / "bad.txt").write_bytes(b"\xff")
    return folder


@pytest.fixture(scope="module")
def expected(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "out"
    pack_text(texts, "*.txt", out, 0.1, LIMITS, tokenizer="bytes")
    return digests(out)


def _command(texts: Path, out: Path, workers: int) -> list[str]:
    options = ["--glob", "*.txt", "--tokenizer", "bytes", "--val-fraction", "0.1", "--shard-bytes", str(LIMITS.bytes)]
    return [STOKER, "data", "pack", "text", str(texts), str(out), *options, "--workers", str(workers)]


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, texts: Path, expected: dict[str, str], workers: int
) -> None:
    seen: list[PackProgress] = []
    options = PackOptions(workers=workers, report_progress=seen.append)
    pack_text(texts, "*.txt", tmp_path / "out", 0.1, LIMITS, options, tokenizer="bytes")
    assert len(expected) > 20
    assert digests(tmp_path / "out") == expected
    assert (seen[-1].inputs, seen[-1].shards) == (601, len(expected) - 1)
    assert [p.inputs for p in seen] == sorted(p.inputs for p in seen)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_bytes_are_the_same_after_kills_at_any_moment(
    tmp_path: Path, texts: Path, expected: dict[str, str], workers: int
) -> None:
    out, chance = tmp_path / "out", random.Random(workers)
    records = partial_folder(out) / "records"
    make_gate(tmp_path / "gate")
    kept = [0]
    while not out.exists():
        # Four lives end amid the shards, whatever the machine's speed; the fifth goes on to the end.
        limit = kept[-1] + chance.randrange(1, 6) if len(kept) <= 4 else 1000
        _kill_at(_command(texts, out, workers), tmp_path / "gate", records, limit, chance.random() * 0.05)
        kept.append(_count(records))
        # Each process counts for itself, and then publishes one.
        assert limit <= kept[-1] < limit + workers or len(kept) == 6
    assert len(kept) == 6
    assert digests(out) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"out", "gate"}
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def _count(records: Path) -> int:
    try:
        return len(list(records.glob("[!.]*.json")))
    except FileNotFoundError:  # the folder went between two looks: packing is finished
        return 0


def _kill_at(command: list[str], gate: Path, records: Path, limit: int, later_s: float) -> None:
    """Run until there are `limit` records, and that much longer, or to its end."""
    environment = gated(gate, limit)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)
    while process.poll() is None and _count(records) < limit:
        time.sleep(0.002)
    time.sleep(later_s)
    process.kill()
    process.wait()
    _wait_until_alone(process.pid)


def _wait_until_alone(session: int) -> None:
    """The processes of a killed command end by themselves."""
    deadline = time.monotonic() + 400  # bounds a hang
    while any(_session(pid) == session for pid in os.listdir("/proc") if pid.isdecimal()):  # noqa: PTH208
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _session(pid: str) -> int:
    try:
        state, *_, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state == "Z" else int(session)


def test_finished_shards_are_not_made_again(tmp_path: Path, texts: Path, expected: dict[str, str]) -> None:
    out = tmp_path / "out"

    def stop(progress: PackProgress) -> None:
        if progress.shards >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_text(texts, "*.txt", out, 0.1, LIMITS, PackOptions(workers=2, report_progress=stop), tokenizer="bytes")
    shards = partial_folder(out) / "shards"
    kept = {path.name: path.stat().st_ino for path in tars(shards)}
    assert len(kept) >= 5
    cut = shards / min(kept)
    os.truncate(cut, 1000)  # a shard that is no more as it was recorded
    said: list[str] = []
    pack_text(texts, "*.txt", out, 0.1, LIMITS, PackOptions(say=said.append), tokenizer="bytes")
    assert any("shards are finished" in line for line in said)
    again = {path.name: path.stat().st_ino for path in tars(out)}
    assert sum(again[name] == inode for name, inode in kept.items()) >= len(kept) - 2
    assert digests(out) == expected


def test_another_plan_in_the_same_folder_is_refused_with_the_difference(tmp_path: Path, texts: Path) -> None:
    out = tmp_path / "out"

    def stop(_progress: PackProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_text(texts, "*.txt", out, 0.1, LIMITS, PackOptions(report_progress=stop))
    with pytest.raises(DataError, match=r"out\.partial holds .* differs \(val_fraction 0\.1, now 0\.2\): run that"):
        pack_text(texts, "*.txt", out, 0.2, LIMITS)
    with pytest.raises(DataError, match=r"differs \(kind text, now tokens\)"):
        pack_text(texts, "*.txt", out, 0.1, LIMITS, tokenizer="bytes")
    with pytest.raises(DataError, match=r"differs \(glob \*\.txt, now 1\*\.txt\)"):
        pack_text(texts, "1*.txt", out, 0.1, LIMITS)
    status = (texts / "1.txt").stat()
    os.utime(texts / "1.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    try:
        with pytest.raises(DataError, match=r"differs \(inputs changed since\)"):
            pack_text(texts, "*.txt", out, 0.1, LIMITS)
    finally:
        os.utime(texts / "1.txt", ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_table_whose_files_were_replaced_or_lie_elsewhere_is_another_plan(tmp_path: Path) -> None:
    for root in ("here", "there"):
        (tmp_path / root).mkdir()
        for name in "abc":
            (tmp_path / root / name).write_bytes(b"same size")
            os.utime(tmp_path / root / name, ns=(0, 1))
    (tmp_path / "t.csv").write_text("file\na\nb\nc\n")

    def attempt(root: str, options: PackOptions = _HERE) -> None:
        columns = Columns(files=["bin=file"], root=tmp_path / root)
        pack_table(tmp_path / "t.csv", columns, tmp_path / "out", 0.0, ShardLimits(samples=1), options)

    def stop(_progress: PackProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("here", PackOptions(report_progress=stop))
    with pytest.raises(DataError, match=r"differs \(inputs changed since\)"):
        attempt("there")
    os.utime(tmp_path / "here" / "b", ns=(0, 2))
    with pytest.raises(DataError, match=r"differs \(inputs changed since\)"):
        attempt("here")
    os.utime(tmp_path / "here" / "b", ns=(0, 1))
    attempt("here")


def test_two_cannot_pack_into_the_same_folder(tmp_path: Path, texts: Path) -> None:
    with (
        work_folder(tmp_path / "out", {"kind": "text"}, ""),
        pytest.raises(DataError, match="out: another process is packing it"),
    ):
        pack_text(texts, "*.txt", tmp_path / "out", 0.1, LIMITS)


def test_an_interruption_while_publishing_is_finished_by_the_next_run(
    tmp_path: Path, texts: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace, moves = tmp_path / "out", Path.replace, []

    def replace_some(source: Path, target: Path) -> Path:
        if target.parent.name == "out" and target.suffix == ".tar":
            moves.append(target)
            if len(moves) == 9:
                raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        pack_text(texts, "*.txt", out, 0.1, LIMITS, tokenizer="bytes")
    assert not out.exists()
    pack_text(texts, "*.txt", out, 0.1, LIMITS, tokenizer="bytes")
    assert digests(out) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_with_the_reason_and_goes_on_after_space_is_made(
    small_disk: Path, texts: Path, expected: dict[str, str], workers: int
) -> None:
    out = small_disk / "out"
    failed = subprocess.run(_command(texts, out, workers), capture_output=True, text=True)
    assert failed.returncode == 2
    [message] = failed.stderr.splitlines()
    assert f"packing {out} stopped: No space left on device" in message
    assert "make space, and the same command goes on" in message
    assert "GB are to be written" in failed.stdout
    kept = len(list((partial_folder(out) / "records").glob("*.json")))
    assert f" {kept} of {len(expected) - 1} shards are kept" in message
    assert kept > 2
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    finished = subprocess.run(_command(texts, out, workers), capture_output=True, text=True)
    assert f"{kept} of {len(expected) - 1} shards are finished" in finished.stdout
    assert digests(out) == expected


def test_a_killed_worker_is_named_and_the_rest_kept(tmp_path: Path, texts: Path, expected: dict[str, str]) -> None:
    out = tmp_path / "out"
    records = partial_folder(out) / "records"
    make_gate(tmp_path / "gate")
    environment = gated(tmp_path / "gate", 3)  # or it might be over before it is struck
    process = subprocess.Popen(
        _command(texts, out, 2), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    while process.poll() is None and _count(records) < 3:
        time.sleep(0.002)
    for child in _workers(process.pid):
        os.kill(child, signal.SIGKILL)
    _, errors = process.communicate()
    assert "one of its processes was killed" in errors.splitlines()[-1]
    pack_text(texts, "*.txt", out, 0.1, LIMITS, tokenizer="bytes")
    assert digests(out) == expected


def _workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in commands.items() if b"spawn_main" in command]


def test_the_manifest_tells_no_time_host_or_path(texts: Path, tmp_path: Path) -> None:
    pack_text(texts, "1*.txt", tmp_path / "out", 0.1, LIMITS)
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert str(texts) not in manifest
    assert os.uname().nodename not in manifest
    assert set(json.loads(manifest)) == {
        *("version", "kind", "options", "inputs", "created_by", "parts", "train", "val", "skipped", "shards")
    }
