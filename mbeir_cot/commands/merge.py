"""`mbeir-cot merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, run_settings
from mbeir_cot.options import ImageRoots


def merge(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the export goes; it must not exist.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    overrides: Set = None,
    image_roots: ImageRoots = None,
) -> None:
    """Exports merged weights with tokenizer and pooling, if a real vLLM server reproduces the embeddings and routes.

    The sample is drawn from the run's own dataset: a query of every dataset-task, its trace, and some candidates.
    """
    from schemas.errors import ConfigError
    from trainer.embedding.workers import EmbedderSpec
    from trainer.evaluation.evaluate_run import results_file
    from trainer.model.location import locate, model_directory
    from trainer.release.hub_files import render_card
    from trainer.release.merge import COSINE
    from trainer.release.merge import merge as run_merge
    from trainer.release.merge_samples import merge_samples

    console = printing.console()
    run = locate(run)
    settings = run_settings(run, overrides, None, image_roots)
    if not settings.data.dataset:
        raise ConfigError(f"{run} does not say what it was fitted on", "add --set data.dataset=DIR, whose rows are compared")
    embedder = EmbedderSpec(settings, model_directory(settings, run, variant)).load()
    if embedder.metadata.merged:
        raise ConfigError(f"{run} holds whole weights already", "nothing is to be merged")
    queries, candidates = merge_samples(settings, embedder)
    card = render_card(
        settings, variant, embedder.metadata.model_copy(update={"merged": True}), out.name, results_file(settings)
    )
    report = run_merge(embedder, queries, candidates, out, settings=settings.adaptive, card=card, progress=console.print)
    console.print(
        f"{escape(str(out))}: least cosine with vLLM {report.least_cosine:.6f} "
        f"over {report.samples:,} rows (at least {COSINE:g}), "
        f"{report.routes_equal:,} of {report.routes:,} routes equal"
        + (f"; even to within rounding: {escape(', '.join(report.even))}" if report.even else "")
    )
