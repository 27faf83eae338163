"""The command `stoker`: its sub-commands, and how errors reach the user."""

import sys

import typer

from configs.errors import EXIT_FAILED, StokerError
from trainer.commands import (
    board,
    cancel,
    checkpoint,
    data,
    doctor,
    drain,
    logs,
    own_task,
    plan,
    render,
    schema,
    status,
    submit,
    train,
)
from trainer.terminal import fail

app = typer.Typer(
    help="The same training run on a laptop, a Slurm cluster or the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(plan.plan)
app.command()(submit.submit)
app.command()(status.status)
app.command()(logs.logs)
app.command()(cancel.cancel)
app.command()(board.board)
app.command()(doctor.doctor)
app.command()(drain.drain)
app.command()(schema.schema)
app.command("check-task")(own_task.check_task)
app.add_typer(data.app, name="data")
app.add_typer(render.app, name="render")
app.add_typer(own_task.app, name="new")
app.add_typer(checkpoint.app, name="checkpoint")


def main() -> None:
    """Entry point: a StokerError becomes its one line and its exit code; anything else is a defect and shows itself."""
    try:
        app()
    except StokerError as error:
        fail(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted at once: what was neither finished nor checkpointed is lost")
        sys.exit(EXIT_FAILED)
