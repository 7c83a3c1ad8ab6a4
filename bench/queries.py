"""Time to embed the queries of an evaluation: each routing separately, compared with embeddings that the routings share.

    python -m bench.queries CONFIG [--split val] [--rounds 3]

Uses the config's base model and makes half of the queries reason, so no training is needed. The routings are those of `mbeir-cot
eval`: bypass, the student's own route, by modality and at random. The model is loaded once, and pools are left out.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from mbeir_cot.options import choose
from pipeline.config import load_config
from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from schemas.mbeir import DATASET_TASKS, SPLITS, Modality
from schemas.training import TrainConfig
from trainer.data.batch_sampler import rng_for
from trainer.embedding.embed import QueryFile
from trainer.embedding.queries import QueryEmbedder, QueryEmbeddings
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.embedding.workers import EmbedderSpec, LocalPoolEmbedder


def main(
    config: Annotated[Path, typer.Argument(metavar="CONFIG")],
    split: str = "val",
    rounds: int = 3,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Prints the seconds of both ways, run alternately, and their ratio."""
    settings = load_config(config, TrainConfig, tuple(overrides or ()))
    layout = Layout.open(settings.data.mbeir)
    known = choose("--split", split, SPLITS)
    tasks = [task for task in DATASET_TASKS if layout.queries(known, task).is_file()]
    files = {task: QueryFile(layout, task, known) for task in tasks}
    worker = LocalPoolEmbedder(EmbedderSpec(settings, None).embedder(), settings)
    places = [(task, query.qid) for task, file in files.items() for query in file.queries]
    chosen = set(rng_for("bench", 0).permutation(len(places))[: len(places) // 2].tolist())
    own = {place: number in chosen for number, place in enumerate(places)}
    chosen = set(rng_for("bench", 1).permutation(len(places))[: len(places) // 2].tolist())
    lot = {place: number in chosen for number, place in enumerate(places)}
    modality = {place: place[0].query_modality is Modality.IMAGE_TEXT for place in places}
    embedder = QueryEmbedder(AdaptiveEmbedder(worker._worker.embedder, settings.adaptive), settings, training_store(settings))

    def alone() -> None:
        for routes in (own, modality, lot):
            for task, file in files.items():
                for start in range(0, len(file.queries), 1024):
                    part = file.queries[start : start + 1024]
                    rows = [file.student_query(query).encode(embedder._engine.encoder, embedder._images) for query in part]
                    embedder._engine.embed(rows, route="given", given=[routes[task, query.qid] for query in part])

    def shared() -> None:
        embeddings = QueryEmbeddings(files, worker)
        # the student's own route, as given: its first pass also yields the bypass embeddings of all queries that reason
        for routes in (own, modality, lot):
            embeddings.embed("given", given=routes)

    seconds: dict[str, list[float]] = {"each routing by itself": [], "shared": []}
    for _ in range(rounds):
        for name, way in zip(seconds, (alone, shared), strict=True):
            began = time.perf_counter()
            with torch.inference_mode():
                way()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["each routing by itself"])
    table = Table(f"{len(places)} queries, 3 routings", "seconds", "x")
    for name, values in seconds.items():
        table.add_row(name, f"{statistics.median(values):.1f}", f"{base / statistics.median(values):.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
