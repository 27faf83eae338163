"""OUT.partial: the finished shards of a packing that goes on, until OUT appears by one rename."""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DataError
from data.atomic import sync_folder
from data.index.shard_patterns import SIDECAR_MARK
from data.pack.pack_manifest import MANIFEST, ShardRecord, make_manifest, read_json, write_json
from data.pack.pack_plan import Json, LeftOuts, PlannedShard, shard_name

__all__ = ["partial_folder"]


CLASSES = "classes.json"


class WorkFolder:
    """Shards under their planned names with a record each; in `published`, what OUT will be."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = partial_folder(out)
        self.shards = self.folder / "shards"
        self.records = self.folder / "records"
        self._published = self.folder / "out"

    def finished(self, planned: Sequence[PlannedShard]) -> dict[str, ShardRecord]:
        """Records of planned shards that are whole."""
        found = {}
        for shard in planned:
            fields = read_json(self.records / f"{shard.name}.json")
            if fields is not None and self._is_whole(record := ShardRecord.from_json(fields)):
                found[shard.name] = record
        return found

    def _is_whole(self, record: ShardRecord) -> bool:
        # Publishing starts when every shard is whole, and moves them away.
        path = self.shards / record.name
        return self._published.exists() or (path.is_file() and path.stat().st_size == record.bytes)

    def save_record(self, record: ShardRecord) -> None:
        """The shard is whole: do not make it again."""
        write_json(self.records / f"{record.name}.json", record.to_json())

    def publish(self, plan: Json, left_out: LeftOuts, records: Sequence[ShardRecord]) -> Json:
        """Shards under their final names, then the manifest, then OUT; gives the manifest. May be repeated."""
        manifest = make_manifest(plan, left_out, named := _published_names(records))
        if not manifest["train"]["samples"]:
            skipped = manifest["skipped"]
            raise DataError(
                f"{self.out}: no sample is left to train on ({skipped['count']} inputs left out, the first: "
                f"{_first_skipped(skipped)}): correct the inputs, or lower val_fraction"
            )
        # Killed anywhere below, the same command finds every record and does the rest.
        self._published.mkdir(exist_ok=True)
        for name, record in named:
            if record.samples:
                self._move(record, name)
        if "classes" in plan:
            write_json(self._published / CLASSES, plan["classes"])
        write_json(self._published / MANIFEST, manifest)
        self._published.rename(self.out)
        sync_folder(self.out.absolute().parent)
        return manifest

    def _move(self, record: ShardRecord, name: str) -> None:
        for sidecar in self.shards.glob(f"{record.name}{SIDECAR_MARK}*"):
            sidecar.replace(self._published / (name + sidecar.name.removeprefix(record.name)))
        source, target = self.shards / record.name, self._published / name
        if source.exists():
            source.replace(target)
        elif not target.is_file():
            raise DataError(f"{source}: has vanished: run the same command again")


def partial_folder(out: Path) -> Path:
    """Where shards of `out` lie until all are made."""
    absolute = out.absolute()
    return absolute.with_name(f"{absolute.name}.partial")


@contextmanager
def work_folder(out: Path, plan: Json, modified: str) -> Iterator[WorkFolder]:
    """The folder of this plan, for this process alone.

    It stays after an interruption or an OSError, for the same command to go on with; a DataError, which no repetition
    would put right, removes it. DataError: another process packs here, or the folder is of another plan.
    """
    work = WorkFolder(out)
    work.shards.mkdir(parents=True, exist_ok=True)
    work.records.mkdir(exist_ok=True)
    with (work.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{out}: another process is packing it: wait for it, or name another folder") from error
        _check_plan(work, {**plan, "modified": modified})
        try:
            yield work
        except DataError:
            shutil.rmtree(work.folder)
            raise
        shutil.rmtree(work.folder)


def _check_plan(work: WorkFolder, plan: Json) -> None:
    path = work.folder / "plan.json"
    found = read_json(path)
    if found is None:
        write_json(path, plan)
    elif found != plan:
        raise DataError(
            f"{work.folder} holds the shards of an interrupted packing that differs ({_difference(found, plan)}): "
            "run that command to its end, or remove the folder"
        )
    for stray in work.folder.rglob(".*.tmp"):
        stray.unlink()


def _difference(found: Json, wanted: Json) -> str:
    """What first sets two plans apart."""
    for key in ("version", "kind"):
        if found.get(key) != wanted[key]:
            return f"{key} {found.get(key)}, now {wanted[key]}"
    then, now = found["options"], wanted["options"]
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            return f"{name} {then.get(name)}, now {now.get(name)}"
    then, now = found["inputs"], wanted["inputs"]
    if then["count"] != now["count"]:
        return f"{then['count']} inputs, now {now['count']}"
    if then != now:
        return "inputs of other names or sizes"
    return "inputs changed since" if found["modified"] != wanted["modified"] else "other classes or another tokenizer"


def _published_names(records: Sequence[ShardRecord]) -> list[tuple[str, ShardRecord]]:
    """Each record with its published name: numbers without a gap, though all inputs of a shard may be left out."""
    counts = {"train": 0, "val": 0}
    named = []
    for record in records:
        named.append((shard_name(record.split, counts[record.split]), record))
        counts[record.split] += bool(record.samples)
    return named


def _first_skipped(skipped: Json) -> str:
    first = skipped["first"]
    return f"{first[0]['name']}, {first[0]['reason']}" if first else "none"
