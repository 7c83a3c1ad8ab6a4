"""`mbeir-cot label` and `mbeir-cot agreement`: people's judgements of verdicts and routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

if TYPE_CHECKING:
    from schemas.labels import Estimate, Threshold

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory.")]

console = printing.console(least_width=160)


def label(
    directory: Dir,
    count: Annotated[int, typer.Option("-n", min=1, help="Items: half of them verdicts, half routes.")] = 200,
    out: Annotated[Path | None, typer.Option(help="The file to write [default: DIR/labels.html].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    image_roots: ImageRoots = None,
) -> None:
    """Writes a page on which people judge a sample of verdicts and routes, by keyboard, and save labels.json.

    One HTML file with its images; it needs no network. It does not show what the teacher and the verifier decided.
    """
    from pipeline.dataset.built_dataset import BuiltDataset
    from pipeline.files.durable import replace_text
    from pipeline.report.label_page import label_page

    dataset = BuiltDataset.open(directory)
    html, items = label_page(dataset, count, seed=seed, image_roots=image_roots or ())
    target = out or (dataset.build or dataset.directory.parent) / "labels.html"
    replace_text(target, html)
    console.print(
        f"Wrote {escape(str(target))} with {items:,} items ({len(html.encode()) / 1e6:.1f} MB): open it in a browser,"
    )
    console.print(f"judge, save labels.json, then: mbeir-cot agreement {escape(str(directory))} labels.json")


def agreement(
    directory: Dir,
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="The file that the page of `label` saved.")],
    precision: Annotated[float, typer.Option(min=0, max=1, help="Find the threshold that would give this precision.")] = 0.95,
    card: Annotated[bool, typer.Option("--card", help="Put the figures into the dataset's manifest and card.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Compares verdicts and routes with people's labels: precision, recall, Cohen's kappa with 95% intervals, by family."""
    from pipeline.dataset.built_dataset import BuiltDataset
    from pipeline.report.agreement import agreements, judged_items, read_labels
    from pipeline.report.label_sample import label_items
    from schemas.errors import InputError

    dataset = BuiltDataset.open(directory)
    given = read_labels(labels)
    items = label_items(dataset)
    judged, strange = judged_items(items, given.labels)
    if not judged:
        raise InputError(
            f"no label of {labels} is of a row of {directory}, as it is now", "name the build whose page of `label` saved it"
        )
    found = agreements(items, judged, precision=precision)
    if card:
        from pipeline.dataset.manifest import add_agreement

        add_agreement(dataset, found)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=1))
        return
    wanted = f"threshold for {precision:.0%}"
    table = Table("judged", "family", "labels", "unsure", "rows", "precision, %", "recall, %", "kappa", wanted)
    for number in range(2, 9):
        table.columns[number].justify = "right"
    for one in found:
        figures = (_shown(one.precision), _shown(one.recall), _shown(one.kappa, "{:.2f}", 1), _threshold(one.threshold))
        table.add_row(escape(one.kind), escape(one.family), f"{one.labels:,}", f"{one.unsure:,}", f"{one.rows:,}", *figures)
    console.print(table)
    console.print(
        "Estimated for the whole dataset, weighted by its strata; in brackets 95% intervals. "
        "Threshold: in brackets the precision and recall that it would give."
    )
    if strange:
        console.print(
            f"[yellow]{strange:,} labels were not counted[/]: their rows are gone, or their traces have changed since."
        )
    if given.config_sha256 != dataset.manifest.config_sha256:
        console.print("[yellow]The labels were made on a build with other settings[/]: the sample may not be even in this one.")
    if card:
        console.print(f"The card and the manifest of {escape(str(dataset.directory))} have these figures now.")


def _shown(estimate: Estimate | None, form: str = "{:.1f}", scale: float = 100) -> str:
    if estimate is None:
        return "-"
    value, low, high = (form.format(scale * figure) for figure in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _threshold(found: Threshold | None) -> str:
    return "-" if found is None else f"{found.threshold:.3f} ({100 * found.precision:.1f}, {100 * found.recall:.1f})"
