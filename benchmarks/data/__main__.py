"""Stoker's data layer beside webdataset, litdata, mosaicml-streaming and what the machine itself can do.

`python -m benchmarks.data` prints a report (`make bench-peers` first); with --write it goes to docs/benchmarks/data.md.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.common.command import parser_of, run_benchmark, say
from benchmarks.data.contests import Contests
from benchmarks.data.data_report import report
from configs.checkout import CHECKOUT


def main() -> None:
    """Parse the command line, run all contests, report."""
    parser = parser_of(__doc__)
    parser.add_argument("--peers", type=Path, default=CHECKOUT / ".venv-peers", help="their virtual environment")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=0.6, help="of one turn")
    run_benchmark(parser, "data.md", _measure)


def _measure(arguments: argparse.Namespace, folder: Path, load: float) -> str:
    python = arguments.peers.absolute() / "bin" / "python"
    if not python.is_file():
        sys.exit(f"no peers to compare with at {arguments.peers}: install them with `make bench-peers`")
    with Contests(str(python), folder, arguments.rounds, arguments.seconds, say) as contests:
        return report(contests.run(), contests.versions, load)


if __name__ == "__main__":
    main()
