"""`mbeir-cot utility`: what traces do for the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, trained_variant
from mbeir_cot.options import ImageRoots

console = printing.console()


def utility(
    run: Run,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset or a build's directory: whose traces.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    out: Annotated[Path | None, typer.Option(help="Where to write [default: RUN/VARIANT/utility].")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Candidates that each query is compared with.")] = 5_000,
    by_failure: Annotated[
        bool, typer.Option("--by-failure", help="Without traces: high where the query fails without one.")
    ] = False,
    overrides: Set = None,
    image_roots: ImageRoots = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measures, under a frozen embedder, how far each trace moves its query's positive, for route.policy: utility.

    Each query is embedded with its trace and without; its utility is how much the positive's lead over the best negative grows.
    """
    from trainer.embedding.workers import EmbedderSpec, open_workers
    from trainer.retrieval.utility import measure_utility

    with trained_variant(run, variant, overrides, image_roots, quiet=quiet) as (settings, chosen, model):
        target = out or model.parent / "utility"
        target.mkdir(parents=True, exist_ok=True)
        with open_workers(EmbedderSpec(settings, model), logs=target) as workers:
            found = measure_utility(
                settings, chosen, model, target, dataset=dataset, sample=sample, by_failure=by_failure, workers=workers
            )
    report = found.report
    for notice in found.notices:
        console.print(f"[yellow]{escape(notice)}[/]")
    console.print(
        f"{report.queries:,} queries against {report.compared_with:,} candidates: mean rank of the positive "
        f"{report.rank_without:.2f} without a trace, margin {report.margin_without:.3f}"
    )
    if report.rank_with is not None and report.margin_with is not None:
        console.print(
            f"with its trace {report.rank_with:.2f}, margin {report.margin_with:.3f}: "
            f"{report.helped:,} traces help ({report.helped / report.queries:.1%})"
        )
    else:
        console.print(f"{report.helped:,} queries fail without a trace ({report.helped / report.queries:.1%})")
    console.print(
        f"Wrote {escape(str(found.file))}: build with --set route.policy=utility --set route.utility={escape(str(found.file))}"
    )
