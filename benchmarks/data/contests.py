"""Each contest: who takes part, in which order, how often. Contenders take turns, one measured at a time."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.common.child import REPOSITORY, Child, Measured
from benchmarks.data.sample_shards import PARTS, make_shard_of_images, make_shards, shards

PEERS = ("webdataset", "litdata", "mosaicml-streaming")
WEBDATASET, LITDATA, STREAMING = PEERS
LITDATA_READ = "litdata, views read"
STOKER = "Stoker"
ROWS, UNVERIFIED, FIRST_PASS = "Stoker, rows", "Stoker, rows, verify_reads off", "Stoker, rows, first pass, verifying"
RAW, RAW_SAMPLES = "readinto, 1 MiB pieces", "readinto, sample by sample"
DECODER, PILLOW = "simplejpeg alone", "webdataset + Pillow"
STREAM, SHUFFLED, WORKERS_8 = "Stoker, in order", "Stoker, shuffled", "webdataset, 8 worker processes"
TARFILE, PARSED, INDEXED = "tarfile", "Stoker, headers", "Stoker, index with checksums"
CONNECTION_MB_PER_S = 60
RESUME_SHARDS, RESUME_SAMPLES_PER_SHARD = 80, 6554
RESUME_AT = (0.0, 0.5, 0.9)

Rounds = list[dict[str, Measured]]


class Entry(NamedTuple):
    """A contender: what to ask of whom."""

    name: str
    child: Child
    command: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Per contest one dictionary per round; of resuming, per round the milliseconds at each fraction."""

    read: Rounds
    decode: Rounds
    remote: Rounds
    index: dict[str, Rounds]
    resume: list[dict[float, dict[str, float]]]
    sample_bytes: dict[str, float]


class Contests:
    """Makes the samples in `folder`, starts the contenders, runs all contests."""

    def __init__(
        self, peers_python: str, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]
    ) -> None:
        self._folder, self._rounds, self._seconds, self._say = folder, rounds, seconds, say
        self._ends = ExitStack()
        # Indexes of remote shards are kept in the user's cache.
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self._peers = {name: self._start(peers_python, "data.peer_contenders", name) for name in PEERS}
        self._stoker = self._start(sys.executable, "data.stoker_contender")
        self._limits = self._start(sys.executable, "data.limit_contenders")
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ends.close()

    def run(self) -> Results:
        """A few minutes."""
        self._say("making the samples, and converting them for those peers that need it")
        make_shards(self._folder)
        for name, peer in self._peers.items():
            self.versions[name] = peer.ask("version")["version"]
            peer.ask("prepare")
        sample_bytes = {kind: self._same_samples(kind) for kind in PARTS}
        return Results(
            read=self._read(),
            decode=self._decode(),
            remote=self._remote(),
            index={kind: self._index(kind) for kind in PARTS},
            resume=self._resume(),
            sample_bytes=sample_bytes,
        )

    def _same_samples(self, kind: str) -> float:
        """Mean bytes of a sample. RuntimeError when one delivers other samples than the others."""
        found = {name: child.ask("check", kind=kind) for name, child in (*self._peers.items(), (STOKER, self._stoker))}
        if any(digest != found[STOKER] for digest in found.values()):
            raise RuntimeError(f"the contenders do not deliver the same {kind} samples: {found}")
        return float(found[STOKER]["bytes"] / found[STOKER]["samples"])

    def _read(self) -> Rounds:
        """Of text: training decodes images as it reads them, so that is another contest."""
        options = {"kind": "text", "seconds": self._seconds}
        rows = {"seconds": self._seconds}
        peers = [Entry(name, child, "read", {**options, "copied": False}) for name, child in self._peers.items()]
        return self._turns(
            "reading text",
            [
                *peers,
                Entry(LITDATA_READ, self._peers[LITDATA], "read", {**options, "copied": True}),
                Entry(ROWS, self._stoker, "read", {**rows, "verify": True}),
                Entry(UNVERIFIED, self._stoker, "read", {**rows, "verify": False}),
                Entry(FIRST_PASS, self._stoker, "first_pass", {}),
                Entry(RAW, self._limits, "pieces", options),
                Entry(RAW_SAMPLES, self._limits, "samples", options),
            ],
        )

    def _decode(self) -> Rounds:
        options = {"seconds": 2 * self._seconds}
        return self._turns(
            "decoding",
            [
                Entry(PILLOW, self._peers[WEBDATASET], "decode", options),
                Entry(DECODER, self._limits, "decode", options),
                Entry(STOKER, self._stoker, "decode", options),
            ],
        )

    def _remote(self) -> Rounds:
        names = [Path(path).name for path in shards(self._folder, "text")]
        port = self._serve(self._folder / "text")
        urls = [f"http://127.0.0.1:{port}/{name}" for name in names]
        webdataset = self._peers[WEBDATASET]
        return self._turns(
            "reading over HTTP",
            [
                Entry(STREAM, self._stoker, "remote", {"urls": urls, "how": "stream"}),
                Entry(SHUFFLED, self._stoker, "remote", {"urls": urls, "how": "shuffled"}),
                Entry(WEBDATASET, webdataset, "remote", {"urls": urls[:3], "workers": 0}),
                Entry(WORKERS_8, webdataset, "remote", {"urls": urls, "workers": 8}),
            ],
            rounds=3,
        )

    def _index(self, kind: str) -> Rounds:
        return self._turns(
            f"indexing, {kind}",
            [
                Entry(TARFILE, self._limits, "tarfile", {"kind": kind}),
                Entry(PARSED, self._stoker, "index", {"kind": kind, "how": "parse"}),
                Entry(INDEXED, self._stoker, "index", {"kind": kind, "how": "build"}),
            ],
        )

    def _resume(self) -> list[dict[float, dict[str, float]]]:
        """One shard under many names is as good as many: each has its index. Each turn in a new process."""
        pattern = [str(self._folder / "resume" / "train-*.tar")]
        self._link_shards()
        self._one_resume(pattern, 0.0)  # builds the indexes
        rounds: list[dict[float, dict[str, float]]] = []
        for number in range(self._rounds):
            self._say(f"resuming: round {number + 1} of {self._rounds}")
            rounds.append({fraction: self._one_resume(pattern, fraction) for fraction in RESUME_AT})
        return rounds

    def _link_shards(self) -> None:
        folder = self._folder / "resume"
        folder.mkdir()
        make_shard_of_images(folder / "train-000000.tar", RESUME_SAMPLES_PER_SHARD)
        for number in range(1, RESUME_SHARDS):
            os.link(folder / "train-000000.tar", folder / f"train-{number:06d}.tar")

    def _one_resume(self, pattern: list[str], fraction: float) -> dict[str, float]:
        child = Child(sys.executable, "data.stoker_contender", str(self._folder))
        try:
            return child.ask("resume", pattern=pattern, fraction=fraction)
        finally:
            child.close()

    def _turns(self, what: str, entries: Sequence[Entry], rounds: int | None = None) -> Rounds:
        """In every round each has a turn, in another order each time."""
        found: Rounds = []
        for number in range(rounds or self._rounds):
            self._say(f"{what}: round {number + 1} of {rounds or self._rounds}")
            turn = number % len(entries)
            order = [*entries[turn:], *entries[:turn]]
            found.append({entry.name: entry.child.measure(entry.command, **entry.options) for entry in order})
        return found

    def _start(self, python: str, module: str, *arguments: str) -> Child:
        child = Child(python, module, *arguments, str(self._folder))
        self._ends.callback(child.close)
        return child

    def _serve(self, folder: Path) -> int:
        command = ["-m", "benchmarks.data.rate_limited_server", str(folder), "--mb-per-s", str(CONNECTION_MB_PER_S)]
        server = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY
        )
        self._ends.callback(server.wait)
        self._ends.callback(server.kill)
        assert server.stdout
        return int(server.stdout.readline())
