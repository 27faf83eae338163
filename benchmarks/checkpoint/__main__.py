"""Saving and loading one state: Stoker, DeepSpeed's own checkpoint, torch's DCP, and what the disk allows.

`python -m benchmarks.checkpoint` prints a report; with --write it goes to docs/benchmarks/checkpoint.md too.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from configs.checkout import CHECKOUT

REPORT = CHECKOUT / "docs" / "benchmarks" / "checkpoint.md"
STAGES = (1, 3)


def main() -> None:
    arguments = _arguments()

    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.folder))
    try:
        _run(arguments, folder)
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=4, help="of each way; the first warms up")
    parser.add_argument("--folder", default="/tmp", help="on the disk to measure")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/checkpoint.md")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    from benchmarks.checkpoint.checkpoint_contenders import measure
    from benchmarks.checkpoint.checkpoint_report import report  # these import torch: not for --help
    from configs.recipe import Recipe
    from tests.support.processes import run_in_processes

    started, load = time.monotonic(), os.getloadavg()[0]
    results = {}
    for stage in STAGES:
        recipe = Recipe.model_validate(_recipe(folder, stage))
        results[stage] = run_in_processes(measure, 2, folder / f"store-{stage}", recipe, folder, arguments.rounds)[0]
    text = report(results, load)
    print(f"{text}\nmeasured in {time.monotonic() - started:.0f} s")
    if arguments.write:
        REPORT.write_text(text, encoding="utf-8")


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
