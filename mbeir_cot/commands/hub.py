"""`mbeir-cot push` and `mbeir-cot push-model`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.hub.push import Plan, Target, Upload

Repo = Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME on the Hub.")]
Private = Annotated[bool, typer.Option("--private", help="Create the repository as private.")]
Revision = Annotated[str | None, typer.Option(help="Branch to push to; it is created [default: main].")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and show what would be uploaded, without sending anything.")]

console = printing.console()


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory or a dataset's.")],
    repo: Repo,
    private: Private = False,
    revision: Revision = None,
    with_images: Annotated[bool, typer.Option("--with-images", help="Push the config with_images too.")] = False,
    dry_run: DryRun = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Id of a row whose suspected secret or path was reviewed and is harmless. May be repeated."),
    ] = None,
    allow_from: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file of such ids, one per line.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Push even a dataset that keeps much less than the one there.")
    ] = False,
) -> None:
    """Pushes a finished dataset to the Hugging Face Hub.

    Checks everything first: rows against the schema, files against the manifest, the card, and that no text contains a local
    path or a token. Refuses a dataset that keeps much less than the one on the Hub (publish.least_share). Then uploads
    what the repository lacks; after an interruption, run it again. The token comes from HF_TOKEN or `hf auth login`;
    HF_ENDPOINT is used if set. The local dataset is not changed.
    """
    from pipeline.dataset.built_dataset import BuiltDataset
    from pipeline.hub.check import check
    from pipeline.hub.dataset import FINAL, belongs, refuse_worse, uploads
    from pipeline.hub.push import Target
    from pipeline.progress_meter import Meter

    dataset = BuiltDataset.open(directory)
    given = list(dict.fromkeys([*(allow or ()), *(_lines(allow_from) if allow_from is not None else ())]))
    rows = dataset.manifest.records + dataset.manifest.rejections
    with Meter("checking", rows, unit="rows") as meter:
        accepted = check(dataset, meter.advance, allow=given)
    if accepted:
        console.print(f"Accepted, and named in the card: {escape(', '.join(accepted))}")
    if unneeded := [identifier for identifier in given if identifier not in accepted]:
        console.print(f"[yellow]Nothing to accept in {escape(', '.join(unneeded))}[/]")
    files = uploads(dataset, repo, with_images=with_images, accepted=accepted)
    target = Target(repo, "dataset", revision)
    guard = None if replace else partial(refuse_worse, dataset, target)
    _push(target, files, FINAL, belongs, dataset.manifest.name, private=private, dry_run=dry_run, guard=guard)
    if not dry_run:
        console.print(escape(f'load_dataset("{repo}"{f", revision={revision!r}" if revision else ""})'))


def push_model(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run, or one of its variants' directories.")],
    repo: Repo,
    variant: Annotated[str, typer.Option(help="Which of the run's embedders.")] = "trace",
    private: Private = False,
    revision: Revision = None,
    dry_run: DryRun = False,
) -> None:
    """Pushes a trained embedder (adapter, token row, pooling) with a model card of its settings and its table."""
    from pipeline.hub.push import Target
    from trainer.release.hub_files import FINAL, belongs, uploads

    files = uploads(run, variant, repo)
    _push(Target(repo, "model", revision), files, FINAL, belongs, f"{run.name} {variant}", private=private, dry_run=dry_run)


def _push(
    target: Target,
    uploads: Sequence[Upload],
    final: Sequence[str],
    belongs: Callable[[str], bool],
    name: str,
    *,
    private: bool,
    dry_run: bool,
    guard: Callable[[], None] | None = None,
) -> None:
    """guard: raises an error if the repository's content must not be replaced."""
    from pipeline.hub.push import Unreachable
    from pipeline.progress_meter import Meter

    try:
        target.reach()
    except Unreachable as error:
        if not dry_run:
            raise
        _show(target.unseen(uploads, final=final))
        console.print(f"[yellow]Not compared with the repository:[/] {escape(error.problem)}")
        console.print("A dry run: nothing was sent.")
        return
    plan = target.plan(uploads, final=final, known=belongs)
    _show(plan)
    if plan.nothing:
        console.print(f"{escape(target.address)} is up to date: nothing to do")
        return
    if plan.exists and guard is not None:
        guard()
    if dry_run:
        console.print("A dry run: nothing was sent.")
        return
    with Meter("uploading", len(plan.large) + len(plan.last), unit="files") as meter:
        target.carry_out(plan, private=private, message=f"{name}, by mbeir-cot", advance=meter.advance)
    console.print(f"Pushed to {escape(target.address)}")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _show(plan: Plan) -> None:
    table = Table(escape(f"{plan.kind} {plan.repo} at {plan.revision}"), "file", "bytes")
    for action, uploads in (("upload", plan.large), ("upload last", plan.last)):
        for upload in uploads:
            table.add_row(action, escape(upload.path), f"{upload.size:,}")
    for path in plan.delete:
        table.add_row("delete", escape(path), "")
    if not plan.nothing:
        console.print(table)
    state = "" if plan.exists else "; the repository will be created"
    console.print(
        f"{len(plan.large) + len(plan.last):,} files, {plan.size:,} bytes; {plan.unchanged:,} are already there{escape(state)}"
    )
