"""Figures of benchmarks.data -> its report, in Markdown. Pure but for what it asks of the machine."""

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from statistics import median

from benchmarks.common.child import Measured
from benchmarks.common.markdown import machine, table
from benchmarks.data import contests as contest
from benchmarks.data.contests import Results, Rounds
from benchmarks.data.sample_shards import CROP_PADDING, PIXELS
from benchmarks.data.stoker_contender import BATCH, ROW_TOKENS

RESUME_GOAL_MS = 100.0
_OURS = ("numpy", "simplejpeg", "pillow", "xxhash", "obstore")

Figure = Callable[[Measured], float]


def report(results: Results, peers: Mapping[str, str], load: float) -> str:
    """All of it; `peers` are versions, `load` is the load average before the benchmark."""
    versions = [*peers.items(), *((name, version(name)) for name in _OURS)]
    parts = [
        "# Speed of the data layer",
        f"`make bench-data` on {date.today()}: {machine()}, Python {platform.python_version()}; load average before it "
        f"{load:.1f}; " + ", ".join(f"{name} {number}" for name, number in versions) + ".",
        "Every contender has a process of its own, reads the same samples (compared by size and CRC-32; litdata and "
        "mosaicml-streaming from their own formats) from the page cache, and has a turn in each round, in another "
        "order each time. Figures are medians of the rounds with the least and the most behind them; ratios compare "
        "turns of one round.",
        *_reading(results),
        *_decoding(results.decode),
        *_remote(results.remote),
        *_resuming(results),
        *_indexing(results.index),
    ]
    return "\n\n".join(parts) + "\n"


def _reading(results: Results) -> list[str]:
    size = results.sample_bytes["text"]
    return [
        "## Reading text",
        f"Texts of {size / 1000:.1f} KB, shuffled, batches of {BATCH}. Processor time of all threads per text or row, "
        "the opening left out. Each peer as it is fastest here, none with worker processes: **webdataset** "
        "`shuffle(1000)`, lists of samples; **litdata** chunks of 64 MB, `shuffle=True`; **mosaicml-streaming** shards "
        "of 64 MB, `shuffle_algo=naive`; they give the bytes of each text (litdata a view of a mapped file that nobody "
        f"has read; *views read* makes it bytes of its own). **Stoker**: rows of {ROW_TOKENS} byte tokens and their "
        "targets as int64, by the data set and the loader of `stoker train`, with its defaults. *verify_reads* "
        "compares each block once, in the *first pass*. Images are decoded as they are read: see below.",
        _reading_table(results.read),
        _bytes_table(results.read, size),
    ]


def _reading_table(rounds: Rounds) -> str:
    rows = [
        [name, _spread(rounds, name, _cpu_us), _ratio(rounds, name, contest.ROWS, _cpu_us)]
        for name in (contest.WEBDATASET, contest.LITDATA, contest.LITDATA_READ, contest.STREAMING)
    ]
    for name in (contest.FIRST_PASS, contest.ROWS, contest.UNVERIFIED):
        rows.append([f"**{name}**", _spread(rounds, name, _cpu_us), ""])
    return table(["", "CPU, µs per text or row", "times Stoker's rows"], rows)


def _bytes_table(rounds: Rounds, sample_bytes: float) -> str:
    """What the machine allows, and the bytes of texts and rows (a token is a byte)."""

    def gb_per_s(item_bytes: float) -> Figure:
        return lambda measured: _gb_per_cpu_s(measured) * item_bytes

    rows = [[name, _spread(rounds, name, _gb_per_cpu_s)] for name in (contest.RAW, contest.RAW_SAMPLES)]
    rows.append([contest.LITDATA_READ, _spread(rounds, contest.LITDATA_READ, gb_per_s(sample_bytes))])
    rows.append([f"**{contest.ROWS}**", _spread(rounds, contest.ROWS, gb_per_s(ROW_TOKENS))])
    return table(["", "GB per CPU second"], rows)


def _decoding(rounds: Rounds) -> list[str]:
    goals = {contest.PILLOW: 2.6, contest.DECODER: 0.95}
    rows = [
        [
            name,
            _spread(rounds, name, _per_s),
            _spread(rounds, name, _cpu_us),
            _ratio(rounds, contest.STOKER, name, _per_s, goals[name] if name == contest.PILLOW else None),
            _ratio(rounds, contest.STOKER, name, _per_cpu_s, goals[name] if name == contest.DECODER else None),
        ]
        for name in goals
    ]
    rows.append([f"**{contest.STOKER}**", *(_spread(rounds, contest.STOKER, f) for f in (_per_s, _cpu_us)), "", ""])
    return [
        "## Decoding, crop and flip to a uint8 batch",
        f"{PIXELS}×{PIXELS} JPEGs padded by {CROP_PADDING}, cropped at random to {PIXELS}×{PIXELS}, mirrored half of "
        'the time, one thread each. **webdataset + Pillow**: `decode("pil")`, Pillow\'s own crop and mirror, '
        "`np.stack`. **simplejpeg alone**: `decode_jpeg` of bytes in memory, nothing else. **Stoker**: the image "
        "source, from reading to the batch.",
        table(["", "images/s", "CPU, µs per image", "Stoker, images/s", "Stoker, images per CPU second"], rows),
    ]


def _remote(rounds: Rounds) -> list[str]:
    names = (contest.WEBDATASET, contest.WORKERS_8)
    rows = [
        [
            name,
            _spread(rounds, name, _mb_per_s),
            _spread(rounds, name, _cpu_ms_per_mb),
            _ratio(rounds, contest.STREAM, name, _mb_per_s, 7.0 if name == contest.WEBDATASET else None),
            _ratio(rounds, contest.SHUFFLED, name, _mb_per_s),
        ]
        for name in names
    ]
    for name in (contest.STREAM, contest.SHUFFLED):
        rows.append([f"**{name}**", _spread(rounds, name, _mb_per_s), _spread(rounds, name, _cpu_ms_per_mb), "", ""])
    return [
        "## Over HTTP",
        f"A loopback server that gives each connection {contest.CONNECTION_MB_PER_S} MB/s "
        "(`benchmarks/data/rate_limited_server.py`), with the texts. Stoker reads by eight ranges at once in one "
        "process, with the index made before and an empty cache: *in order* every byte, as a new shard is indexed, "
        "*shuffled* the rows of an epoch, as training reads them; webdataset by `curl`, one shard after the other, or "
        "with a process per connection.",
        table(["", "MB/s", "CPU, ms per MB", "Stoker in order", "Stoker shuffled"], rows),
    ]


def _resuming(results: Results) -> list[str]:
    rows = []
    for fraction in contest.RESUME_AT:
        of = [round_[fraction] for round_ in results.resume]
        all_ms = [figures["all"] for figures in of]
        cells = [f"{median(figures[name] for figures in of):.1f}" for name in ("open", "keys", "batch")]
        verdict = "met" if median(all_ms) <= RESUME_GOAL_MS else "short"
        rows.append([f"{fraction:.0%}", *cells, f"{_median_and_range(all_ms)} (≤ {RESUME_GOAL_MS:.0f}: {verdict})"])
    samples = int(results.resume[0][0.0]["samples"])
    return [
        "## Resuming",
        f"{samples:,} images of {results.sample_bytes['jpeg'] / 1000:.1f} KB in {contest.RESUME_SHARDS} shards "
        f"({samples * results.sample_bytes['jpeg'] / 1e9:.0f} GB: one shard under {contest.RESUME_SHARDS} names), "
        "their indexes kept. In a new process with its modules imported: from `open_dataset` to the first batch of "
        "64, decoded, at a fraction of the first epoch.",
        table(["position", "open, ms", "keys, ms", "read and decode, ms", "to the first batch, ms"], rows),
    ]


def _indexing(by_kind: Mapping[str, Rounds]) -> list[str]:
    rows = []
    for kind, rounds in by_kind.items():
        rows += [
            [f"{kind}: {contest.TARFILE}", _spread(rounds, contest.TARFILE, _k_per_cpu_s), "", ""],
            [
                f"{kind}: **{contest.PARSED}**",
                _spread(rounds, contest.PARSED, _k_per_cpu_s),
                _ratio(rounds, contest.PARSED, contest.TARFILE, _per_cpu_s, 5.0),
                "",
            ],
            [f"{kind}: **{contest.INDEXED}**", "", "", _spread(rounds, contest.INDEXED, _gb_per_cpu_s)],
        ]
    return [
        "## Indexing",
        "All headers of the same tars. `tarfile` seeks over the contents; Stoker reads all bytes, as it sums them too.",
        table(["", "thousand members per CPU second", "times tarfile's", "GB per CPU second"], rows),
    ]


def _spread(rounds: Rounds, name: str, figure: Figure) -> str:
    return _median_and_range([figure(r[name]) for r in rounds])


def _median_and_range(values: Sequence[float]) -> str:
    middle = median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} – {max(values):,.{digits}f})"


def _ratio(rounds: Rounds, above: str, below: str, figure: Figure, goal: float | None = None) -> str:
    return _with_goal([figure(r[above]) / figure(r[below]) for r in rounds], goal)


def _with_goal(ratios: Sequence[float], goal: float | None) -> str:
    middle = median(ratios)
    shown = f"{middle:.{2 if middle < 10 else 1}f}"
    return shown if goal is None else f"**{shown}** ({goal:g}: {'met' if middle >= goal else 'short'})"


def _cpu_us(measured: Measured) -> float:
    return 1e6 * measured.cpu_s / measured.count


def _per_s(measured: Measured) -> float:
    return measured.count / measured.wall_s


def _per_cpu_s(measured: Measured) -> float:
    return measured.count / measured.cpu_s


def _k_per_cpu_s(measured: Measured) -> float:
    return _per_cpu_s(measured) / 1e3


def _gb_per_cpu_s(measured: Measured) -> float:
    return _per_cpu_s(measured) / 1e9


def _mb_per_s(measured: Measured) -> float:
    return _per_s(measured) / 1e6


def _cpu_ms_per_mb(measured: Measured) -> float:
    return 1e9 * measured.cpu_s / measured.count
