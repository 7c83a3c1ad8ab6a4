"""`mbeir-cot merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.commands.retrieve import source_of
from mbeir_cot.commands.train import Run, Set, load_settings
from mbeir_cot.options import ImageRoots

if TYPE_CHECKING:
    from schemas.training import TrainConfig
    from trainer.data.encoding import EncodedSequence
    from trainer.model.embedder import Embedder

_QUERIES = 16
_CANDIDATES = 8


def merge(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the export goes; it must not exist.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    overrides: Set = None,
    image_roots: ImageRoots = None,
) -> None:
    """Exports whole weights with tokenizer and pooling rule, after a real vLLM server has reproduced embeddings and routes.

    The sample is drawn from the run's own dataset: a query of every dataset-task, its trace, and some candidates.
    """
    from schemas.errors import ConfigError
    from trainer.model.location import located
    from trainer.release.hub_files import card_of
    from trainer.release.merge import COSINE
    from trainer.release.merge import merge as run_merge

    console = printing.console()
    run = located(run)
    settings = load_settings(run, overrides, None, image_roots)
    if not settings.data.dataset:
        raise ConfigError(f"{run} does not say what it was fitted on", "add --set data.dataset=DIR, whose rows are compared")
    embedder = source_of(settings, run, variant).load()
    if embedder.identity.merged:
        raise ConfigError(f"{run} holds whole weights already", "nothing is to be merged")
    queries, candidates = _rows(settings, embedder)
    results = settings.out / "eval" / f"results_{settings.evaluation.split}.json"
    card = card_of(settings, variant, embedder.identity.model_copy(update={"merged": True}), out.name, results)
    report = run_merge(embedder, queries, candidates, out, settings=settings.adaptive, card=card, progress=console.print)
    console.print(
        f"{escape(str(out))}: least cosine with vLLM {report.least_cosine:.6f} "
        f"over {report.samples:,} rows (at least {COSINE:g}), "
        f"{report.routes_equal:,} of {report.routes:,} routes equal"
        + (f"; even to within rounding: {escape(', '.join(report.even))}" if report.even else "")
    )


def _rows(settings: TrainConfig, embedder: Embedder) -> tuple[list[EncodedSequence], list[EncodedSequence]]:
    from trainer.data.batches import BatchSource
    from trainer.data.dataset import Candidates, Records

    records = Records.load(settings.data.dataset)
    candidates = Candidates(settings.data.mbeir, records.split, settings.data.candidate_cache)
    source = BatchSource(settings, "direct", records, {}, embedder.encoder(), candidates)
    groups = list(records.groups(repeat=False).values())
    chosen = [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)][:_QUERIES]
    items = [records.item(index) for index in chosen]
    found = candidates.fetch([item.positives[0] for item in items[:_CANDIDATES]])
    return [source.prompt_row(item) for item in items], [source.candidate_row(one) for one in found]
