"""Stoker's training loop beside bare DeepSpeed and bare PyTorch DDP, and its start beside a plain Ray Train script.

`python -m benchmarks.step` prints a report; with --write it goes to docs/benchmarks/step.md too.
"""

import argparse
from pathlib import Path

from benchmarks.common.command import parser_of, run_benchmark, say


def main() -> None:
    """Parse the command line, measure loops and starts, report."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each loop in each round")
    parser.add_argument(
        "--rounds", type=int, default=6, help="a multiple of 3 gives each loop each place equally often"
    )
    parser.add_argument("--start-rounds", type=int, default=2, help="starts of each of the two commands")
    parser.add_argument("--skip-start", action="store_true", help="do not measure start to first step")
    run_benchmark(parser, "step.md", _measure)


def _measure(arguments: argparse.Namespace, folder: Path, load: float) -> str:
    from benchmarks.step.command_start import start_times
    from benchmarks.step.loop_pair import measure_loops  # imports torch: not for --help
    from benchmarks.step.step_report import report
    from data.pack_inputs.examples import pack_stdlib

    pack_stdlib(folder / "shards")
    say(f"{arguments.rounds} rounds of three loops, {arguments.steps} steps each")
    rounds = measure_loops(folder, arguments.rounds, arguments.steps, say)
    starts = {} if arguments.skip_start else start_times(folder, arguments.start_rounds, say)
    return report(rounds, starts, load)


if __name__ == "__main__":
    main()
