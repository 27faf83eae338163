"""What the benchmarks' commands share: a scratch folder, and the report, printed and with --write kept."""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from configs.checkout import CHECKOUT

# (arguments, scratch folder, load average before) -> the report in Markdown.
Measure = Callable[[argparse.Namespace, Path, float], str]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the first line of a module's docstring."""
    return argparse.ArgumentParser(description=(description or "").partition("\n")[0])


def run_benchmark(parser: argparse.ArgumentParser, report_name: str, measure: Measure) -> None:
    """Parse the command line, measure, print the report; --write replaces docs/benchmarks/`report_name`.

    The scratch folder lies in `arguments.folder`, /tmp where there is no such argument, and is removed at the end.
    """
    path = CHECKOUT / "docs" / "benchmarks" / report_name
    parser.add_argument("--write", action="store_true", help=f"write {path.relative_to(CHECKOUT)}")
    arguments = parser.parse_args()
    started, load = time.monotonic(), os.getloadavg()[0]
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=getattr(arguments, "folder", "/tmp")))
    try:
        text = measure(arguments, folder, load)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"\n{text}\nmeasured in {time.monotonic() - started:.0f} s")
    if arguments.write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def say(line: str) -> None:
    """Print at once, into a pipe too."""
    print(line, flush=True)
