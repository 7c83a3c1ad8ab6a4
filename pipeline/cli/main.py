"""`mbeir-cot`: the one command-line program.

Modules of sub-commands are imported at start so that `--help` lists them; they import what is heavy (torch, Ray, Arrow)
inside the commands, so that a command loads only what it needs.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import pipeline.cli.build
import pipeline.cli.export
import pipeline.cli.ledger
import pipeline.cli.look
import pipeline.cli.mbeir
import pipeline.cli.publish
import pipeline.cli.score
import pipeline.cli.teacher
import pocket.cli
import trainer.cli
import trainer.cli_merge
import trainer.cli_search
from schemas import __version__
from schemas.errors import CotError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build reasoning data for universal multimodal retrieval (M-BEIR-CoT) and fit the TRACE embedder on it.",
)
for _command in ("build", "preview", "estimate", "status", "stats", "reroute"):
    app.command(_command)(getattr(pipeline.cli.build, _command))
app.command()(pipeline.cli.look.report)
app.command()(pipeline.cli.export.export)
app.command()(pipeline.cli.look.show)
app.command()(pipeline.cli.publish.push)
app.command("push-model")(pipeline.cli.publish.push_model)
app.command()(trainer.cli.train)
app.command("eval")(trainer.cli.evaluate)
app.command()(trainer.cli_search.index)
app.command()(trainer.cli_search.search)
app.command()(trainer.cli_merge.merge)
app.command()(pipeline.cli.score.score)
app.add_typer(pipeline.cli.ledger.app, name="ledger", help="The log of every teacher answer.")
app.add_typer(pipeline.cli.mbeir.app, name="mbeir", help="Download, check and count M-BEIR.")
app.add_typer(pipeline.cli.teacher.app, name="teacher", help="Ask the teacher what it can do.")
app.command()(pipeline.cli.teacher.serve)
app.add_typer(pocket.cli.app, name="pocket", help="The embedded default: a synthetic miniature M-BEIR.")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mbeir-cot {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the command found what it was asked to look for, 2 an error, 130 interrupted."""
    try:
        app()
    except CotError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)


if __name__ == "__main__":
    main()
