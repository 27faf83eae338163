"""Stoker's data layer beside webdataset, litdata, mosaicml-streaming and what the machine itself can do.

`python -m benchmarks.data` prints a report (`make bench-peers` first); with --write it goes to docs/benchmarks/data.md.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.data.contests import Contests
from benchmarks.data.data_report import report
from configs.checkout import CHECKOUT

REPORT = CHECKOUT / "docs" / "benchmarks" / "data.md"


def main() -> None:
    arguments = _arguments()
    python = arguments.peers.absolute() / "bin" / "python"
    if not python.is_file():
        sys.exit(f"no peers to compare with at {arguments.peers}: install them with `make bench-peers`")
    folder = Path(tempfile.mkdtemp(prefix="bench-data-", dir="/tmp"))
    try:
        _run(arguments, str(python), folder)
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--peers", type=Path, default=CHECKOUT / ".venv-peers", help="their virtual environment")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=0.6, help="of one turn")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/data.md")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, peers_python: str, folder: Path) -> None:
    started, load = time.monotonic(), os.getloadavg()[0]
    with Contests(peers_python, folder, arguments.rounds, arguments.seconds, _say) as contests:
        text = report(contests.run(), contests.versions, load)
    _say(f"\n{text}\nmeasured in {time.monotonic() - started:.0f} s")
    if arguments.write:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
