"""`mbeir-cot score`: UniIR's scores for embeddings in UniIR's layout, from any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.options import choose


def score(
    uniir_dir: Annotated[Path, typer.Option(help="The directory that contains embed/SUFFIX/…")],
    mbeir_dir: Annotated[Path, typer.Option(help="The M-BEIR root, for its qrels.")],
    suffix: Annotated[str, typer.Option(help="The experiment's path suffix.")],
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    union: Annotated[bool, typer.Option("--union/--no-union", help="Search the union of all pools too.")] = True,
    device: Annotated[str, typer.Option(help="Where to search: cpu, cuda, or auto for a GPU if there is one.")] = "auto",
) -> None:
    """Scores saved embeddings as UniIR does: exact search, hit rates, local and union pools, run files and the table.

    Pools are streamed from disk, the union once for all tasks. Ties are broken as CPU faiss breaks them. Embeddings with NaN or
    inf are an error. Writes retrieval_results/SUFFIX/{run_files,final_tsv} below the UniIR directory.
    """
    from pipeline.mbeir.layout import Layout
    from schemas.mbeir import EVALUATION_SPLITS
    from trainer.embedding.files import EmbeddingFiles
    from trainer.evaluation.tables import render_scores
    from trainer.evaluation.uniir_files import count_unreadable, score_directory, write_table
    from trainer.retrieval.topk import search_device

    scored_split = choose("--split", split, EVALUATION_SPLITS)
    choose("--device", device, ("auto", "cpu", "cuda"))
    files = EmbeddingFiles(uniir_dir, suffix)
    console, errors = printing.console(), printing.console(stderr=True)
    scores = []
    for of_search, _ in score_directory(
        files,
        Layout.open(mbeir_dir),
        split=scored_split,
        pools=("single", "union") if union else ("single",),
        device=search_device(device),
    ):
        scores += of_search
        first = of_search[0]
        rates = ", ".join(f"R@{score.k} {score.value:.4f}" for score in of_search)
        errors.print(f"{escape(first.task.name)} {escape(first.pool)}: {escape(rates)}")
    path = write_table(files, scores, scored_split)
    console.print(render_scores(scores))
    for task, unreadable in count_unreadable(files, scored_split).items():
        console.print(f"[yellow]{escape(task.name)}: {unreadable:,} queries could not be read and count as misses[/]")
    console.print(escape(str(path)))
