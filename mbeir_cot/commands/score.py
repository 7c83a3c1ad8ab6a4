"""`mbeir-cot score`: UniIR's scores for embeddings in UniIR's layout, from any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.options import choose


def score(
    uniir_dir: Annotated[Path, typer.Option(help="The directory with embed/SUFFIX/… in it.")],
    mbeir_dir: Annotated[Path, typer.Option(help="The M-BEIR root: its qrels are read.")],
    suffix: Annotated[str, typer.Option(help="The experiment's path suffix.")],
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    union: Annotated[bool, typer.Option("--union/--no-union", help="Search the union of all pools too.")] = True,
    device: Annotated[
        str, typer.Option(help="Where products are made: cpu, cuda, or auto for a GPU where there is one.")
    ] = "auto",
) -> None:
    """Scores saved embeddings as UniIR does: exact search, hit rates, local and union pools, run files and the table.

    Pools are streamed from disk, the union once for all tasks. Ties are broken as CPU faiss breaks them. Embeddings with NaN or
    inf are refused. Writes retrieval_results/SUFFIX/{run_files,final_tsv} below the UniIR directory.
    """
    from pipeline.mbeir.layout import Layout
    from schemas.mbeir import EVALUATION_SPLITS
    from trainer.data.exclusions import load_exclusions
    from trainer.embedding.files import EmbeddingFiles, exclusions_path
    from trainer.evaluation.uniir import format_table, headline_k, score_directory
    from trainer.retrieval.topk import search_device

    scored = choose("--split", split, EVALUATION_SPLITS)
    choose("--device", device, ("auto", "cpu", "cuda"))
    files = EmbeddingFiles(uniir_dir, suffix)
    found = []
    console, errors = printing.console(), printing.console(stderr=True)
    for scores, _ in score_directory(
        files,
        Layout.open(mbeir_dir),
        split=scored,
        pools=("single", "union") if union else ("single",),
        device=search_device(device),
    ):
        found += scores
        first = scores[0]
        errors.print(escape(f"{first.task.name} {first.pool}: " + ", ".join(f"R@{s.k} {s.value:.4f}" for s in scores)))
    files.tables.mkdir(parents=True, exist_ok=True)
    path = files.tables / f"eval_results_{split}.tsv"
    path.write_text(format_table(found), newline="", encoding="utf-8")
    shown = Table("dataset-task", "R@", "local", "union")
    tasks = list(dict.fromkeys(score.task for score in found))
    columns: dict[str, list[float]] = {"single": [], "union": []}
    for task in tasks:
        k = headline_k(task)
        values = {score.pool: score.value for score in found if score.task == task and score.k == k}
        for pool, value in values.items():
            columns[pool].append(value)
        shown.add_row(
            escape(task.name), str(k), *(f"{values[pool]:.4f}" if pool in values else "" for pool in ("single", "union"))
        )
    means = [f"{sum(values) / len(values):.4f}" if values else "" for values in columns.values()]
    shown.add_row("mean", "", *means)
    console.print(shown)
    lists = {task.name: load_exclusions(exclusions_path(files.queries(task, scored))) for task in tasks}
    for name, unreadable in lists.items():
        if unreadable:
            console.print(f"[yellow]{escape(name)}: {len(unreadable):,} queries could not be read and count as misses[/]")
    console.print(escape(str(path)))
