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
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write; it must not exist.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    overrides: Set = None,
    image_roots: ImageRoots = None,
) -> None:
    """Exports merged weights with tokenizer and pooling, provided that a real vLLM server reproduces the embeddings and routes.

    They are compared on a sample of the run's dataset: a query of each dataset-task, its trace, and some candidates.
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
        raise ConfigError(f"{run} does not say what it was trained on", "add --set data.dataset=DIR, whose rows are compared")
    embedder = EmbedderSpec(settings, model_directory(settings, run, variant)).load()
    if embedder.metadata.merged:
        raise ConfigError(f"{run} already contains merged weights", "there is nothing to merge")
    queries, candidates = merge_samples(settings, embedder)
    card = render_card(
        settings, variant, embedder.metadata.model_copy(update={"merged": True}), out.name, results_file(settings)
    )
    comparison = run_merge(embedder, queries, candidates, out, settings=settings.adaptive, card=card, progress=console.print)
    console.print(
        f"{escape(str(out))}: least cosine with vLLM {comparison.least_cosine:.6f} "
        f"over {comparison.samples:,} sequences (at least {COSINE:g}), "
        f"{comparison.routes_equal:,} of {comparison.routes:,} routes equal"
        + (f"; tied to within rounding: {escape(', '.join(comparison.even))}" if comparison.even else "")
    )
