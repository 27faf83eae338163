"""`stoker data pack`: make train and val shards of what users have."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from configs.errors import EXIT_REQUEUE
from data.arrays import PROGRESS_S
from data.pack.packing_run import PackOptions, PackProgress, ReportProgress
from data.pack.partial_folder import partial_folder
from data.pack.shard_writer import DEFAULT_LIMITS, ShardLimits
from data.pack_inputs.examples import pack_digits, pack_stdlib
from data.pack_inputs.pack_kinds import pack_arrays, pack_images, pack_table, pack_text, read_classes
from data.pack_inputs.recipe_lines import recipe_lines
from data.pack_inputs.table_inputs import Columns
from data.pack_inputs.token_arrays import ArraySplit
from trainer.terminal import console, say

app = typer.Typer(
    no_args_is_help=True,
    help="Make train and val shards: OUT/train-000000.tar …, OUT/val-000000.tar … and OUT/manifest.json. The same "
    "input gives the same bytes, with any number of workers; after an interruption the same command goes on.",
)

Out = Annotated[Path, typer.Argument(help="new folder for the shards")]
ValFraction = Annotated[float, typer.Option(min=0.0, max=1.0, help="share of samples for validation, by hash")]
ShardBytes = Annotated[int, typer.Option(min=1, help="most bytes of a shard; of the text, where tokens are packed")]
ShardSamples = Annotated[int, typer.Option(min=1, help="most samples of a shard")]
Workers = Annotated[int, typer.Option(min=1, help="processes", show_default="one per core")]
Tokenizer = Annotated[
    str | None, typer.Option(help="keep tokens, not text: `bytes`, or the path of a Hugging Face tokenizer.json")
]
Classes = Annotated[
    Path | None, typer.Option(help="classes.json of another packing: the same numbers", exists=True, dir_okay=False)
]
Check = Annotated[bool, typer.Option("--check", help="decode every image, and leave out those that cannot be")]
_CORES = len(os.sched_getaffinity(0))


@app.command("text")
def text_command(
    folder: Path,
    out: Out,
    glob: Annotated[str, typer.Option(help="which files, relative to FOLDER")] = "**/*.txt",
    tokenizer: Tokenizer = None,
    val_fraction: ValFraction = 0.05,
    shard_bytes: ShardBytes = DEFAULT_LIMITS.bytes,
    shard_samples: ShardSamples = DEFAULT_LIMITS.samples,
    workers: Workers = _CORES,
) -> None:
    """One sample per UTF-8 file of FOLDER."""
    with _packing(out, workers) as options:
        pack_text(folder, glob, out, val_fraction, ShardLimits(shard_bytes, shard_samples), options, tokenizer)


@app.command("images")
def images_command(
    folder: Path,
    out: Out,
    classes: Classes = None,
    check: Check = False,
    val_fraction: ValFraction = 0.05,
    shard_bytes: ShardBytes = DEFAULT_LIMITS.bytes,
    shard_samples: ShardSamples = DEFAULT_LIMITS.samples,
    workers: Workers = _CORES,
) -> None:
    """One sample per image of FOLDER/CLASS/; the classes are numbered in OUT/classes.json."""
    given = None if classes is None else read_classes(classes)
    with _packing(out, workers) as options:
        pack_images(folder, out, val_fraction, ShardLimits(shard_bytes, shard_samples), options, given, check)


@app.command("table")
def table_command(
    source: Annotated[Path, typer.Argument(help="a .csv, .tsv, .jsonl or .parquet file, or a folder of one kind")],
    out: Out,
    text: Annotated[str | None, typer.Option(help="column of text: part txt")] = None,
    image: Annotated[str | None, typer.Option(help="column of images, or of their paths")] = None,
    label: Annotated[str | None, typer.Option(help="column of classes or their numbers: part cls")] = None,
    tokens: Annotated[str | None, typer.Option(help="column of lists of token ids: part npy")] = None,
    part: Annotated[list[str] | None, typer.Option(metavar="EXT=COLUMN", help="a column's value as part EXT")] = None,
    file: Annotated[list[str] | None, typer.Option(metavar="EXT=COLUMN", help="the file it names as part EXT")] = None,
    root: Annotated[Path | None, typer.Option(help="folder that paths are relative to; default: the table's")] = None,
    classes: Classes = None,
    check: Check = False,
    vocab: Annotated[int | None, typer.Option(min=1, help="how many token ids there are, with --tokens")] = None,
    tokenizer: Tokenizer = None,
    val_fraction: ValFraction = 0.05,
    shard_bytes: ShardBytes = DEFAULT_LIMITS.bytes,
    shard_samples: ShardSamples = DEFAULT_LIMITS.samples,
    workers: Workers = _CORES,
) -> None:
    """One sample per row. Without options, the column `text`, or `path` and `label`, are packed."""
    given = None if classes is None else read_classes(classes)
    columns = Columns(text, image, label, tokens, part or (), file or (), root, given, vocab, check)
    with _packing(out, workers) as options:
        pack_table(source, columns, out, val_fraction, ShardLimits(shard_bytes, shard_samples), options, tokenizer)


@app.command("arrays")
def arrays_command(
    source: Annotated[Path, typer.Argument(help="a folder of .npy files, one per document, or one .npy file")],
    out: Out,
    end_of_document: Annotated[int | None, typer.Option(help="cut the file after each token of this id")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="cut the file every so many tokens")] = None,
    vocab: Annotated[int | None, typer.Option(min=1, help="how many token ids there are; default: as found")] = None,
    val_fraction: ValFraction = 0.05,
    shard_bytes: ShardBytes = DEFAULT_LIMITS.bytes,
    shard_samples: ShardSamples = DEFAULT_LIMITS.samples,
    workers: Workers = _CORES,
) -> None:
    """Token ids as uint16 or uint32; a file of two dimensions has a sample per row. No end of document is added."""
    limits = ShardLimits(shard_bytes, shard_samples)
    with _packing(out, workers) as options:
        pack_arrays(source, ArraySplit(end_of_document, rows), out, val_fraction, limits, options, vocab)


@app.command("digits")
def digits_command(out: Out) -> None:
    """scikit-learn's handwritten digits, 8×8 grey."""
    pack_digits(out, say=say)


@app.command("stdlib")
def stdlib_command(out: Out) -> None:
    """The Python files of this interpreter's standard library, without tests."""
    pack_stdlib(out, say=say)


@contextmanager
def _packing(out: Path, workers: int) -> Iterator[PackOptions]:
    """Shows progress, then the lines of a recipe that use the shards. Ctrl-C keeps what is finished."""
    try:
        with _shown() as watch:
            yield PackOptions(workers, say, watch)
    except KeyboardInterrupt as error:
        say(f"interrupted: finished shards are kept in {partial_folder(out)}, and the same command goes on")
        raise typer.Exit(EXIT_REQUEUE) from error
    for line in recipe_lines(out):
        say(line)


@contextmanager
def _shown() -> Iterator[ReportProgress]:
    """A bar on a terminal, lines now and then elsewhere."""
    if not console.is_terminal:
        yield _Lines().watch
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("inputs, {task.description}"), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def watch(progress: PackProgress) -> None:
            shards = f"{progress.shards}/{progress.total_shards} shards"
            bar.update(task, completed=progress.inputs, total=progress.total_inputs, description=shards)

        yield watch


class _Lines:
    def __init__(self) -> None:
        self._said = time.monotonic()

    def watch(self, progress: PackProgress) -> None:
        if time.monotonic() - self._said < PROGRESS_S:
            return
        self._said = time.monotonic()
        say(
            f"packed {progress.inputs} of {progress.total_inputs} inputs, "
            f"{progress.shards} of {progress.total_shards} shards are finished"
        )
