"""`mbeir-cot index` and `mbeir-cot search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, load_settings
from mbeir_cot.options import ImageRoots

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from schemas.training import TrainConfig
    from trainer.embedding.workers import EmbedderSpec

_RECALL_QUERIES = 256
_RECALL_K = 10
_DEFAULT_INSTRUCTION = "Find what the query describes."

console = printing.console()


def index(
    run: Run,
    out: Annotated[Path, typer.Option(help="The index's directory.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    split: Annotated[str, typer.Option(help="Whose candidate pools: train, val or test.")] = "test",
    pool: Annotated[
        list[str] | None, typer.Option(help="A local pool, e.g. cirr_task7; may be repeated [default: global].")
    ] = None,
    approximate: Annotated[
        str | None, typer.Option(help="Also a faiss index for serving, e.g. HNSW32; recall is printed.")
    ] = None,
    overrides: Set = None,
    image_roots: ImageRoots = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Embeds a corpus with a trained embedder. Run it again after an interruption: parts that are written are kept."""
    from contextlib import nullcontext

    from pipeline.mbeir.layout import Layout
    from schemas.errors import ConfigError
    from trainer.data.unreadable import load_list, told
    from trainer.distributed import ProcessGroup
    from trainer.embedding.workers import LocalPoolEmbedder, RayPoolEmbedder
    from trainer.model.embedder import fingerprint
    from trainer.model.location import is_checkpoint, located
    from trainer.retrieval.index import UNREADABLE, IndexMetadata, build_index, pools_of

    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split {split}: unknown", "train, val or test")
    run = located(run)
    settings = load_settings(run, overrides, None, image_roots)
    source = source_of(settings, run, variant)
    assert source.model is not None
    layout = Layout.open(settings.data.mbeir)
    paths = pools_of(layout, split, pool or [])  # type: ignore[arg-type]
    card = IndexMetadata(
        run=run.absolute(),
        variant=variant,
        embedder_sha256=fingerprint(source.model),
        base=settings.model.base if is_checkpoint(run) else None,
        mbeir=settings.data.mbeir.absolute(),
        cache=settings.data.candidate_cache,
        pools=tuple(layout.relative(path) for path in paths),
        count=0,
        dim=0,
    )
    count, on_gpu = settings.evaluation.workers, ProcessGroup.join(settings.device).device.type == "cuda"
    with (
        nullcontext(LocalPoolEmbedder(source.embedder(), settings))
        if count == 1
        else RayPoolEmbedder(source, count, gpu=on_gpu) as workers
    ):
        made = build_index(out, card, paths, workers, skip=settings.data.skip_unreadable, quiet=quiet)
    console.print(f"{escape(str(out))}: {made.card.count:,} candidates, {made.card.dim:,} dimensions")
    if left_out := load_list(out / UNREADABLE):
        console.print(f"[yellow]{escape(told('candidates', left_out, out / UNREADABLE))}[/]")
    if approximate is not None:
        made.make_approximate(approximate)
        queries = _some_queries(source, settings, split)
        recall = made.recall(queries, _RECALL_K)
        console.print(
            f"{escape(approximate)}: recall@{_RECALL_K:,} against exact search {recall:.4f} "
            f"({len(queries):,} queries of {escape(split)})"
        )


def search(
    where: Annotated[Path, typer.Argument(metavar="INDEX", help="What `mbeir-cot index` wrote.")],
    text: Annotated[str, typer.Argument(help="The query's text.")] = "",
    image: Annotated[Path | None, typer.Option(help="The query's image.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits shown.")] = 10,
    instruction: Annotated[str, typer.Option(help="What to look for.")] = _DEFAULT_INSTRUCTION,
    route: Annotated[str, typer.Option(help="learned, always-direct or always-reason.")] = "learned",
    approximate: Annotated[bool, typer.Option("--approximate", help="Use the faiss index.")] = False,
) -> None:
    """Embeds one query, adaptively, and shows how it was routed, the trace it wrote, and what it found."""
    from pipeline.mbeir.stores import plain_store
    from schemas.errors import ConfigError, InputError
    from trainer.embedding.adaptive import AdaptiveEmbedder
    from trainer.model.embedder import fingerprint
    from trainer.retrieval.index import Index

    if not text and image is None:
        raise ConfigError("nothing to search for", "give a text, --image, or both")
    if route not in ("learned", "always-direct", "always-reason"):
        raise ConfigError(f"--route {route}: unknown", "learned, always-direct or always-reason")
    found = Index.open(where)
    settings = load_settings(found.card.run, found.card.overrides, None)
    source = source_of(settings, found.card.run, found.card.variant)
    assert source.model is not None
    if fingerprint(source.model) != found.card.embedder_sha256:
        raise InputError(f"{source.model} is not the embedder that made {where}", "build the index again")
    embedder = source.load()
    shown_file = image.resolve() if image is not None else None  # the user's own file: a link to anywhere is meant
    picture = plain_store(shown_file.parent).open(shown_file.name) if shown_file is not None else None
    adaptive = AdaptiveEmbedder(embedder, settings.adaptive)
    row = adaptive.encoder.query("query", instruction, text, picture)
    (one,) = adaptive.embed([row], route=route)  # type: ignore[arg-type]
    said = "reasons" if one.reasoned else "goes straight to its embedding"
    console.print(f"{escape(said)} (P(direct) {one.p_direct:.3f}, {1e3 * one.seconds:.0f} ms)")
    if one.trace:
        console.print(escape(one.trace.strip()) + ("" if one.ended else " […] (cut)"), style="italic")
    table = Table("", "score", "candidate", "text", "image")
    (hits,) = found.hits(found.search(one.vector.numpy()[None], k, approximate=approximate))
    for rank, hit in enumerate(hits, 1):
        shown = found.card.mbeir / hit.candidate.img_path if hit.candidate.img_path else ""
        table.add_row(
            str(rank), f"{hit.score:.4f}", escape(hit.candidate.did), escape(hit.candidate.txt or ""), escape(str(shown))
        )
    console.print(table)


def source_of(settings: TrainConfig, run: Path, variant: str) -> EmbedderSpec:
    from schemas.errors import InputError
    from trainer.embedding.workers import EmbedderSpec
    from trainer.model.location import is_checkpoint

    if is_checkpoint(run):
        return EmbedderSpec(settings, run)
    model = (run if run.is_dir() else settings.out) / variant / "model"
    if not (model / "embedder.json").is_file():
        raise InputError(f"{model} holds no embedder", "run `mbeir-cot train` first, or name another --variant")
    return EmbedderSpec(settings, model)


def _some_queries(source: EmbedderSpec, settings: TrainConfig, split: str) -> NDArray[np.float32]:
    """Vectors of a few queries of every dataset-task, embedded as in service."""
    import torch

    from pipeline.dataset.training_store import training_store
    from pipeline.mbeir.layout import Layout
    from schemas.mbeir import DATASET_TASKS
    from trainer.embedding.adaptive import AdaptiveEmbedder
    from trainer.embedding.embed import QueryFile

    layout, images = Layout.open(settings.data.mbeir), training_store(settings)
    adaptive = AdaptiveEmbedder(source.load(), settings.adaptive)
    tasks = [task for task in DATASET_TASKS if layout.queries(split, task).is_file()]  # type: ignore[arg-type]
    rows = []
    for task in tasks:
        file = QueryFile(layout, task, split)  # type: ignore[arg-type]
        file.queries = file.queries[: -(-_RECALL_QUERIES // len(tasks))]
        rows += file.rows(adaptive.encoder, images)
    found: NDArray[np.float32] = torch.stack([one.vector for one in adaptive.embed(rows)]).numpy()
    return found
