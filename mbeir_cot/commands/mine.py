"""`mbeir-cot mine`: hard negatives from a run's own index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, trained_variant
from mbeir_cot.options import ImageRoots
from schemas.mining import MiningSettings

if TYPE_CHECKING:
    from trainer.retrieval.mine import Judge

console = printing.console()
_DEFAULTS = MiningSettings()


def mine(
    run: Run,
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    out: Annotated[Path | None, typer.Option(help="Where to write [default: RUN/VARIANT/mined].")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Negatives of a query.")] = _DEFAULTS.keep,
    depth: Annotated[int, typer.Option(min=1, help="Candidates of a query that are looked at.")] = _DEFAULTS.depth,
    skip: Annotated[int, typer.Option(min=0, help="First candidates that are passed over.")] = _DEFAULTS.skip,
    margin: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of the positive's score: what scores above is passed over.")
    ] = _DEFAULTS.margin,
    near: Annotated[
        float, typer.Option(min=0.01, max=1, help="Cosine with a positive from which a candidate is a duplicate.")
    ] = _DEFAULTS.near,
    verifier: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="A build's config, whose verifier judges the negatives that are left."),
    ] = None,
    yes: Annotated[
        float, typer.Option(min=0, max=1, help="With --verifier: the probability of `yes` above which one is passed over.")
    ] = _DEFAULTS.yes,
    overrides: Set = None,
    image_roots: ImageRoots = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Mines hard negatives for the queries that a run was trained on, for data.hard_negatives: mined.

    Embeds the training's candidates and queries with the run's embedder and searches all queries in one pass. Passed over are
    positives, those of queries that share one, near-duplicates of a positive, and candidates that score too close to it. With
    --verifier a build's verifier is asked, for each negative of a query with a trace, whether it supports the trace's answer.
    """
    from trainer.embedding.workers import EmbedderSpec, open_workers
    from trainer.retrieval.mine import COLLAPSED, mine

    wanted = MiningSettings(keep=keep, depth=depth, skip=skip, margin=margin, near=near, yes=yes)
    with trained_variant(run, variant, overrides, image_roots, quiet=quiet) as (settings, chosen, model):
        target = out or model.parent / "mined"
        target.mkdir(parents=True, exist_ok=True)
        with open_workers(EmbedderSpec(settings, model), logs=target) as workers, _opened_judge(verifier, target) as judge:
            mined = mine(settings, chosen, model, target, settings=wanted, workers=workers, judge=judge)
    report = mined.report
    for notice in mined.notices:
        console.print(f"[yellow]{escape(notice)}[/]")
    console.print(
        f"{report.negatives:,} negatives for {report.mined:,} of {report.queries:,} queries: mean score "
        f"{report.negative_score:.3f}, the positives' {report.positive_score:.3f}; a positive is among the first "
        f"{wanted.depth:,} for {report.found:.1%}"
    )
    console.print(
        f"passed over: {report.positives:,} positives, {report.duplicates:,} duplicates of a positive, {report.skipped:,} "
        f"skipped, {report.too_close:,} too close to the positive"
        + (f", {report.right:,} of {report.judged:,} that the verifier judged" if verifier is not None else "")
    )
    if report.spread > COLLAPSED:
        console.print(
            f"[yellow]two random candidates have a mean cosine of {report.spread:.2f}: the embedder has collapsed[/], "
            "and its negatives mean little"
        )
    console.print(f"Wrote {escape(str(mined.file))}: set data.hard_negatives=mined and data.mined={escape(str(mined.file))}")


@contextmanager
def _opened_judge(verifier: Path | None, target: Path) -> Iterator[Judge | None]:
    """Asks the verifier of a build's config; a managed one is started for it."""
    if verifier is None:
        yield None
        return
    from pipeline.config import load_config
    from pipeline.serving.hosted import hosted_pair
    from schemas.config import BuildConfig
    from trainer.retrieval.verdicts import judge_pairs

    build = load_config(verifier, BuildConfig)
    with hosted_pair(build) as endpoints:
        yield lambda pairs: judge_pairs(build, endpoints, pairs, target / "verdicts")
