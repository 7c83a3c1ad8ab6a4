"""`mbeir-cot report` and `mbeir-cot show`: inspect a build or a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.annotate.annotation import Annotation

console = printing.console()


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR|RUN", help="A build's directory, a dataset's, or a training run's.")
    ],
    out: Annotated[Path | None, typer.Option(help="The file to write [default: DIR/report.html].")] = None,
    records: Annotated[int, typer.Option(min=0, help="Records to show, sampled evenly.")] = 300,
    rejections: Annotated[int, typer.Option(min=0, help="Rejections to show.")] = 100,
    price_in: Annotated[float | None, typer.Option(help="Price per million prompt tokens, to show the cost.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price per million completion tokens.")] = None,
    image_roots: ImageRoots = None,
) -> None:
    """Writes one HTML file with figures, tables, and examples with their images, prompts and raw answers.

    The file needs no network. For a build: think rates, yields, rejections, lengths, a browsable sample. For a training run:
    learning curves, the table with controls, and where TRACE wins and loses against the direct embedding.
    """
    from pipeline.files.durable import replace_text
    from pipeline.report.page import render

    if (directory / "train.json").is_file():
        from trainer.evaluation.report import run_page
        from trainer.zero_shot.report import suite_grids
        from trainer.zero_shot.results import read_results

        more = suite_grids(read_results(directory))
        page = run_page(directory, examples=records, image_roots=image_roots or (), more=more)
        target = out or directory / "report.html"
    else:
        from pipeline.dataset.built_dataset import BuiltDataset
        from pipeline.report.dataset_report import build_page

        dataset = BuiltDataset.open(directory)
        prices = (price_in or 0.0, price_out or 0.0) if price_in is not None or price_out is not None else None
        page = build_page(dataset, records=records, rejections=rejections, prices=prices, image_roots=image_roots or ())
        # beside the dataset, so that it is never pushed
        target = out or (dataset.build or dataset.directory.parent) / "report.html"
    html = render(page)
    replace_text(target, html)
    console.print(f"Wrote {escape(str(target))} ({len(html.encode()) / 1e6:.1f} MB): open it in a browser")


def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory or a dataset's.")],
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A row's id, such as train/cirr/task7/8:1.")],
) -> None:
    """Shows everything about one record or rejection: images, trace, judgements, provenance, prompts and raw answers."""
    from pipeline.annotate.replay import replay
    from pipeline.dataset.built_dataset import BuiltDataset
    from pipeline.mbeir.candidates import first_positives

    dataset = BuiltDataset.open(directory)
    part, row = dataset.row(identifier)
    settings = dataset.settings()
    here = settings is not None and settings.mbeir.is_dir()
    root = f"{settings.mbeir}/" if here and settings is not None else ""
    console.rule(f"[bold]{escape(identifier)}[/]  {escape('rejected' if part == 'rejected' else row['route'])}", align="left")
    if dataset.manifest.synthetic:
        console.print("[bold]SYNTHETIC[/] (pocket world)")
    _lines(
        [
            ("instruction", row["instruction"]),
            ("text", row["query_text"]),
            ("image", root + row["query_image"] if row["query_image"] else None),
            ("modalities", f"{row['query_modality']} -> {row['cand_modality']}"),
            ("positives", ", ".join(row["positives"])),
            ("hard negatives", ", ".join(row["hard_negatives"]) or None),
            ("multiplicity", row["multiplicity"] if row["multiplicity"] > 1 else None),
            ("P(complex)", f"{row['assessment']:.6f}" if row["assessment"] is not None else None),
        ]
    )
    if settings is not None and here and (positive := first_positives(settings, [row]).get(identifier)) is not None:
        image = f"{root}{positive.img_path}" if positive.img_path else ""
        _lines([("positive", f"{positive.did}  {positive.txt or ''} {image}".strip())])
    if part == "rejected":
        _lines(
            [("rejected at", f"{row['stage']}: {row['reason']}"), ("detail", row["detail"]), ("last answer", row["raw_answer"])]
        )
        _lines([("confidence", f"{row['confidence']:.3f}" if row["confidence"] is not None else None)])
        _lines([("  by facet", _facet_confidences(row))])
    else:
        _lines(
            [*((facet["name"], facet["text"]) for facet in row["facets"]), ("answer", row["answer"]), ("target", row["target"])]
        )
        if row["verdict"]:
            _lines([("verdict", f"{row['verdict']['confidence']:.3f} by {row['verdict']['verifier']}")])
            _lines([("  by facet", _facet_confidences(row))])
        _lines([("utility", f"{row['utility']:.3f}" if row["utility"] is not None else None)])
        _lines([("provenance", ", ".join(f"{key} {value}" for key, value in row["provenance"].items()))])
    annotation = replay(settings, [row]).get(identifier) if settings is not None and here else None
    if annotation is None:
        console.print("[dim]no prompts and raw answers: the M-BEIR directory or the ledger of this build is not here[/]")
    else:
        _print_exchanges(annotation)


def _facet_confidences(row: Mapping[str, Any]) -> str:
    """The confidence of each facet of a row; empty where it was not verified by facets."""
    return ", ".join(f"{one['name']} {one['confidence']:.3f}" for one in row["facet_confidences"] or ())


def _lines(pairs: Iterable[tuple[str, Any]]) -> None:
    for label, value in pairs:
        if value is not None and value != "":
            console.print(f"[dim]{escape(label):<15}[/]{escape(str(value))}")


def _print_exchanges(annotation: Annotation) -> None:
    from pipeline.report.dataset_report import exchanges

    for exchange in exchanges(annotation):
        console.print(f"\n[bold]{escape(exchange.title)}[/]")
        console.print(escape("\n".join(f"    {line}" for line in exchange.prompt.strip().splitlines())), style="dim")
        console.print(escape("\n".join(f"  > {line}" for line in exchange.answer.strip().splitlines())))
