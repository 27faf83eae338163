"""Stoker's training loop beside bare DeepSpeed and bare PyTorch DDP, and its start beside a plain Ray Train script.

`python -m benchmarks.step` prints a report; with --write it goes to docs/benchmarks/step.md too.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from configs.checkout import CHECKOUT

REPORT = CHECKOUT / "docs" / "benchmarks" / "step.md"


def main() -> None:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    try:
        _run(arguments, folder)
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each loop in each round")
    parser.add_argument(
        "--rounds", type=int, default=6, help="a multiple of 3 gives each loop each place equally often"
    )
    parser.add_argument("--start-rounds", type=int, default=2, help="starts of each of the two commands")
    parser.add_argument("--skip-start", action="store_true", help="do not measure start to first step")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/step.md")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    from benchmarks.step.command_start import start_times
    from benchmarks.step.loop_pair import measure_loops  # imports torch: not for --help
    from benchmarks.step.step_report import report
    from data.pack_inputs.examples import pack_stdlib

    started, load = time.monotonic(), os.getloadavg()[0]
    pack_stdlib(folder / "shards")
    _say(f"{arguments.rounds} rounds of three loops, {arguments.steps} steps each")
    rounds = measure_loops(folder, arguments.rounds, arguments.steps, _say)
    starts = {} if arguments.skip_start else start_times(folder, arguments.start_rounds, _say)
    text = report(rounds, starts, load)
    _say(f"\n{text}\nmeasured in {time.monotonic() - started:.0f} s")
    if arguments.write:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
