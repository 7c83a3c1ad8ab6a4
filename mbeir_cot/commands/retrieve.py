"""`mbeir-cot index` and `mbeir-cot search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, run_settings
from mbeir_cot.options import ImageRoots, choose
from pipeline.progress_meter import quiet_progress

if TYPE_CHECKING:
    from trainer.retrieval.index import Index, SmallRecall

_RECALL_K = 10

console = printing.console()


def index(
    run: Run,
    out: Annotated[Path, typer.Option(help="The index's directory.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    split: Annotated[str, typer.Option(help="Split of the candidate pools: train, val or test.")] = "test",
    pool: Annotated[
        list[str] | None, typer.Option(help="A local pool, e.g. cirr_task7; may be repeated [default: global].")
    ] = None,
    approximate: Annotated[
        str | None, typer.Option(help="Also build a faiss index for serving, e.g. HNSW32, and print its recall.")
    ] = None,
    small: Annotated[
        str | None,
        typer.Option(help="Also small vectors for memory: float16, int8 or binary; bytes and recall are printed."),
    ] = None,
    dims: Annotated[
        int | None, typer.Option(min=1, help="With --small: keep the first dimensions (loss.matryoshka) [default: all].")
    ] = None,
    overrides: Set = None,
    image_roots: ImageRoots = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Embeds a corpus with a trained embedder. After an interruption, run it again: finished parts are kept."""
    from pipeline.dataset.training_store import training_store
    from schemas.errors import ConfigError
    from schemas.mbeir import SPLITS
    from trainer.data.exclusions import describe_exclusions, load_exclusions
    from trainer.embedding.recovered_candidates import readable
    from trainer.embedding.workers import EmbedderSpec
    from trainer.model.location import locate, model_directory
    from trainer.retrieval.index import UNREADABLE
    from trainer.retrieval.index_builder import index_run
    from trainer.retrieval.small_vectors import SmallKind

    known_split = choose("--split", split, SPLITS)
    kind = choose("--small", small, get_args(SmallKind)) if small is not None else None
    if dims is not None and kind is None:
        raise ConfigError("--dims has no effect without --small", "give both, or neither; `search --dims` needs no preparation")
    run = locate(run)
    settings = run_settings(run, overrides, None, image_roots)
    with quiet_progress(quiet):
        made = index_run(settings, run, variant, split=known_split, pools=pool or (), out=out)
    console.print(f"{escape(str(out))}: {made.metadata.count:,} candidates, {made.metadata.dim:,} dimensions")
    if left_out := load_exclusions(out / UNREADABLE):
        console.print(f"[yellow]{escape(describe_exclusions('candidates', left_out, out / UNREADABLE))}[/]")
        if mended := readable(left_out, training_store(settings)):
            again = f"{len(mended):,} of them can be read now: remove {out} and run again to index them too"
            console.print(f"[yellow]{escape(again)}[/]")
    if approximate is None and kind is None:
        return
    from trainer.retrieval.recall_queries import recall_queries

    embedder = EmbedderSpec(settings, model_directory(settings, run, variant)).load()
    queries = recall_queries(embedder, settings, known_split, notice=lambda line: console.print(f"[yellow]{escape(line)}[/]"))
    if approximate is not None:
        made.make_approximate(approximate)
        recall = made.measure_recall(queries, _RECALL_K)
        console.print(
            f"{escape(approximate)}: recall@{_RECALL_K:,} against exact search {recall:.4f} "
            f"({len(queries):,} queries of {escape(split)})"
        )
    if kind is not None:
        made.make_small(kind, dims)
        _print_small(made, made.measure_small(queries, _RECALL_K))


def _print_small(made: Index, measured: SmallRecall) -> None:
    """Recall against exact search, beside the bytes that a vector takes."""
    form = measured.form
    table = Table("vectors", "dimensions", "bytes a vector", f"recall@{_RECALL_K:,}", "rescored")
    table.add_row("float16, all read", f"{made.metadata.dim:,}", f"{2 * made.metadata.dim:,}", "1.0000", "")
    table.add_row(escape(form.kind), f"{form.dims:,}", f"{form.bytes:,}", f"{measured.alone:.4f}", f"{measured.rescored:.4f}")
    console.print(table)


def search(
    where: Annotated[Path, typer.Argument(metavar="INDEX", help="What `mbeir-cot index` wrote.")],
    text: Annotated[str, typer.Argument(help="The query's text.")] = "",
    image: Annotated[Path | None, typer.Option(help="The query's image.")] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits to show.")] = 10,
    instruction: Annotated[
        str | None, typer.Option(help="What to search for [default: Find what the query describes.].")
    ] = None,
    route: Annotated[str, typer.Option(help="learned, always-direct or always-reason.")] = "learned",
    approximate: Annotated[bool, typer.Option("--approximate", help="Use the faiss index.")] = False,
    small: Annotated[bool, typer.Option("--small", help="Search the small vectors; hits have exact scores.")] = False,
    dims: Annotated[
        int | None, typer.Option(min=1, help="Compare the first dimensions only (loss.matryoshka), exactly.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Embed the query with this service (`serve-embeddings`), e.g. http://127.0.0.1:8100/v1.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="With --url: the environment variable with its key.")
    ] = None,
) -> None:
    """Embeds one query adaptively and shows its route, its trace and the results."""
    from schemas.errors import ConfigError
    from schemas.training import RouteChoice
    from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION
    from trainer.retrieval.index import Index
    from trainer.service.remote import RemoteEmbedder

    if not text and image is None:
        raise ConfigError("nothing to search for", "give a text, --image, or both")
    chosen = choose("--route", route, get_args(RouteChoice))
    opened = Index.open(where)
    embedder = RemoteEmbedder(url, api_key_env=api_key_env) if url is not None else opened.embedder()
    ((one, hits),) = opened.find(
        [(text, image)],
        embedder,
        k=k,
        instruction=instruction if instruction is not None else DEFAULT_INSTRUCTION,
        route=chosen,
        approximate=approximate,
        small=small,
        dims=dims,
    )
    said = "reasons" if one.reasoned else "goes straight to its embedding"
    said += f", with confidence {one.confidence:.3f}" if one.confidence is not None else ""
    console.print(f"{escape(said)} (P(direct) {one.p_direct:.3f}, {1e3 * one.seconds:.0f} ms)")
    if one.fell_back:
        console.print("the trace's confidence is below adaptive.fallback: the embedding is the one without it")
    if one.trace:
        console.print(escape(one.trace.strip()) + ("" if one.ended else " […] (cut)"), style="italic")
    table = Table("", "score", "candidate", "text", "image")
    for rank, hit in enumerate(hits, 1):
        shown = opened.metadata.mbeir / hit.candidate.img_path if hit.candidate.img_path else ""
        table.add_row(
            str(rank), f"{hit.score:.4f}", escape(hit.candidate.did), escape(hit.candidate.txt or ""), escape(str(shown))
        )
    console.print(table)
