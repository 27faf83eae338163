"""Saving and loading one state: Stoker, DeepSpeed's own checkpoint, torch's DCP, and what the disk allows.

`python -m benchmarks.checkpoint` prints a report; with --write it goes to docs/benchmarks/checkpoint.md too.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common.command import parser_of, run_benchmark

STAGES = (1, 3)


def main() -> None:
    """Parse the command line, measure both ZeRO stages, report."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="of each way; the first warms up")
    parser.add_argument("--folder", default="/tmp", help="on the disk to measure")
    run_benchmark(parser, "checkpoint.md", _measure)


def _measure(arguments: argparse.Namespace, folder: Path, load: float) -> str:
    from benchmarks.checkpoint.checkpoint_contenders import measure
    from benchmarks.checkpoint.checkpoint_report import report  # these import torch: not for --help
    from configs.recipe import Recipe
    from tests.support.processes import run_in_processes

    results = {}
    for stage in STAGES:
        recipe = Recipe.model_validate(_recipe(folder, stage))
        results[stage] = run_in_processes(measure, 2, folder / f"store-{stage}", recipe, folder, arguments.rounds)[0]
    return report(results, load)


def _recipe(folder: Path, stage: int) -> dict[str, Any]:
    """A GPT of 50 M parameters."""
    return {
        "run": {"name": f"zero-{stage}", "dir": str(folder / "runs"), "steps": 10},
        "model": {"kind": "gpt", "layers": 16, "heads": 8, "width": 512, "context": 64},
        "data": {"kind": "text", "train": {"shards": "none"}},
        "batch": {"global": 2, "micro": 1},
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "zero": {"stage": stage},
        "workers": {"count": 2},
    }


if __name__ == "__main__":
    main()
