"""`mbeir-cot push` and `mbeir-cot push-model`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.hub.push import Plan, Target, Upload

Repo = Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME on the Hub.")]
Private = Annotated[bool, typer.Option("--private", help="Create the repository as private.")]
Revision = Annotated[str | None, typer.Option(help="Branch to push to; it is created [default: main].")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, show what would be uploaded, send nothing.")]

console = Console(highlight=False, soft_wrap=True)


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory or a dataset's.")],
    repo: Repo,
    private: Private = False,
    revision: Revision = None,
    with_images: Annotated[bool, typer.Option("--with-images", help="Push the config with_images too.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Publishes a finished dataset on the Hugging Face Hub.

    First everything is checked: every row against the schema, files against the manifest, the card, no path of this machine,
    nothing like a token. Then what the repository lacks is uploaded; run it again after an interruption and it continues. The
    token comes from HF_TOKEN or `hf auth login`; HF_ENDPOINT is honoured. The local dataset is not touched.
    """
    from pipeline.finished import FinishedDataset
    from pipeline.hub.check import check
    from pipeline.hub.dataset import FINAL, belongs, uploads
    from pipeline.hub.push import Target
    from pipeline.progress import Meter

    dataset = FinishedDataset.open(directory)
    rows = dataset.manifest.records + dataset.manifest.rejections
    with Meter("checking", rows, unit="rows") as meter:
        check(dataset, meter.advance)
    found = uploads(dataset, repo, with_images=with_images)
    _push(Target(repo, "dataset", revision), found, FINAL, belongs, dataset.manifest.name, private=private, dry_run=dry_run)
    if not dry_run:
        console.print(f'load_dataset("{repo}"{f", revision={revision!r}" if revision else ""})')


def push_model(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run, or one of its variants' directories.")],
    repo: Repo,
    variant: Annotated[str, typer.Option(help="Which of the run's embedders.")] = "trace",
    private: Private = False,
    revision: Revision = None,
    dry_run: DryRun = False,
) -> None:
    """Publishes a trained embedder (adapter, token row, pooling) with a model card of its settings and its table."""
    from pipeline.hub.push import Target
    from trainer.publish import FINAL, belongs, uploads

    found = uploads(run, variant, repo)
    _push(Target(repo, "model", revision), found, FINAL, belongs, f"{run.name} {variant}", private=private, dry_run=dry_run)


def _push(
    target: Target,
    uploads: Sequence[Upload],
    final: Sequence[str],
    belongs: Callable[[str], bool],
    name: str,
    *,
    private: bool,
    dry_run: bool,
) -> None:
    from pipeline.progress import Meter

    plan = target.plan(uploads, final=final, known=belongs)
    _show(plan)
    if plan.nothing:
        console.print(f"{target.address} holds this already: nothing to do")
        return
    if dry_run:
        console.print("A dry run: nothing was sent.")
        return
    with Meter("uploading", len(plan.large) + len(plan.last), unit="files") as meter:
        target.carry_out(plan, private=private, message=f"{name}, by mbeir-cot", advance=meter.advance)
    console.print(f"Published {target.address}")


def _show(plan: Plan) -> None:
    table = Table(f"{plan.kind} {plan.repo} at {plan.revision}", "file", "bytes")
    for action, uploads in (("upload", plan.large), ("upload last", plan.last)):
        for upload in uploads:
            table.add_row(action, upload.path, f"{upload.size:,}")
    for path in plan.delete:
        table.add_row("delete", path, "")
    if not plan.nothing:
        console.print(table)
    state = "" if plan.exists else "; the repository is to be created"
    console.print(f"{len(plan.large) + len(plan.last)} files, {plan.size:,} bytes; {plan.unchanged} are there already{state}")
