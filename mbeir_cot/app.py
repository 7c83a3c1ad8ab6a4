"""`mbeir-cot`: the one command-line program.

Modules of sub-commands are imported at start so that `--help` lists them; they import what is heavy (torch, Ray, Arrow)
inside the commands, so that a command loads only what it needs.
"""

from __future__ import annotations

import io
import locale
import os
import sys
import traceback
from typing import Annotated, Final

import typer
from rich.markup import escape

import mbeir_cot.commands.build
import mbeir_cot.commands.export
import mbeir_cot.commands.hub
import mbeir_cot.commands.inspect
import mbeir_cot.commands.label
import mbeir_cot.commands.ledger
import mbeir_cot.commands.mbeir
import mbeir_cot.commands.merge
import mbeir_cot.commands.mine
import mbeir_cot.commands.mteb
import mbeir_cot.commands.pocket
import mbeir_cot.commands.retrieve
import mbeir_cot.commands.score
import mbeir_cot.commands.service
import mbeir_cot.commands.teacher
import mbeir_cot.commands.train
import mbeir_cot.commands.utility
import mbeir_cot.commands.zero_shot
from mbeir_cot.failures import FAULT, explained, summary, write_fault
from mbeir_cot.printing import console
from pipeline.files.run_log import DEBUG_VARIABLE, debug_wanted
from schemas import __version__

_RESTARTED: Final = "MBEIR_COT_UTF8"
"""Set once Python has been restarted in UTF-8 mode, so that it is not restarted twice."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build reasoning data for universal multimodal retrieval (M-BEIR-CoT) and train the TRACE embedder on it.",
)
for _command in ("build", "preview", "estimate", "status", "stats", "reroute"):
    app.command(_command)(getattr(mbeir_cot.commands.build, _command))
app.command()(mbeir_cot.commands.inspect.report)
app.command()(mbeir_cot.commands.export.export)
app.command()(mbeir_cot.commands.inspect.show)
app.command()(mbeir_cot.commands.label.label)
app.command()(mbeir_cot.commands.label.agreement)
app.command()(mbeir_cot.commands.hub.push)
app.command("push-model")(mbeir_cot.commands.hub.push_model)
app.command()(mbeir_cot.commands.train.train)
app.command("eval")(mbeir_cot.commands.train.evaluate)
app.command()(mbeir_cot.commands.retrieve.index)
app.command()(mbeir_cot.commands.retrieve.search)
app.command("serve-embeddings")(mbeir_cot.commands.service.serve_embeddings)
app.command()(mbeir_cot.commands.mine.mine)
app.command()(mbeir_cot.commands.utility.utility)
app.command()(mbeir_cot.commands.merge.merge)
app.command()(mbeir_cot.commands.score.score)
app.command()(mbeir_cot.commands.mteb.mteb)
app.add_typer(mbeir_cot.commands.ledger.app, name="ledger", help="The log of every teacher answer.")
app.add_typer(mbeir_cot.commands.mbeir.app, name="mbeir", help="Download, check and count M-BEIR.")
app.add_typer(mbeir_cot.commands.teacher.app, name="teacher", help="Check the teacher, download its models.")
app.command()(mbeir_cot.commands.teacher.serve)
app.add_typer(mbeir_cot.commands.zero_shot.app, name="zero-shot", help="The zero-shot suite: its files and its scores.")
app.command()(mbeir_cot.commands.zero_shot.contamination)
app.add_typer(mbeir_cot.commands.pocket.app, name="pocket", help="The embedded default: a synthetic miniature M-BEIR.")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mbeir-cot {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show tracebacks of errors and log more (also: MBEIR_COT_DEBUG=1). May be given anywhere."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point.

    Exit codes: 0 success, 1 a check found problems, 2 an error, 70 a bug of the program, 130 interrupted.
    """
    _use_utf8()
    debug = _debug_wanted()
    try:
        app()
    except Exception as error:  # noqa: BLE001 (the last handler)
        if debug:
            traceback.print_exception(error)
        known = explained(error)
        if known is not None:
            _print_error(f"[bold red]error:[/] {escape(str(known))}")
            sys.exit(2)
        file = write_fault(error)
        if file is None and not debug:
            traceback.print_exception(error)
        _print_error(
            f"[bold red]a fault of the program:[/] {escape(summary(error))}\n  "
            + (f"the traceback is in {escape(str(file))}; please report it with that file\n  " if file is not None else "")
            + "finished work is kept: run the same command again to continue. --debug shows the traceback here"
        )
        sys.exit(FAULT)


def _print_error(text: str) -> None:
    console(stderr=True).print(text)


def _debug_wanted() -> bool:
    """--debug may be given anywhere, since it is added to a command that has failed. Child processes get the variable."""
    options = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if "--debug" in options:
        sys.argv.remove("--debug")
        os.environ[DEBUG_VARIABLE] = "1"
    return debug_wanted()


def _use_utf8() -> None:
    """Restarts Python in its UTF-8 mode if necessary: M-BEIR's texts and file names are UTF-8, whatever the locale."""
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8") and not os.environ.get(_RESTARTED):
        os.environ |= {"PYTHONUTF8": "1", _RESTARTED: "1"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
