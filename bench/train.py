"""Speed and memory of the trainer, compared with their bounds.

    python -m bench.train step       # samples/s of a step, compared with sentence-transformers' cached in-batch loss
    python -m bench.train memory     # peak memory of a step by global batch, at a fixed micro-batch size
    python -m bench.train vision     # passes through the vision tower and their time, with and without keeping its output
    python -m bench.train adaptive   # queries/s of adaptive embedding, compared with the bound at its think rate

All use the pocket base and the pocket dataset (`make build-dataset`), except that `adaptive` uses a trained run (`make train`) and
`vision` random weights.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mbeir_cot.options import choose
from pipeline.config import load_config
from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from schemas.mbeir import DATASET_TASKS, SPLITS
from schemas.training import TrainConfig
from trainer.data.batches import Batch, BatchSource
from trainer.data.dataset import Candidates, Records
from trainer.data.process_group import ProcessGroup
from trainer.embedding.embed import QueryFile
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder, pool_states
from trainer.training.step import train_step

app = typer.Typer(help=__doc__, add_completion=False)
console = Console()
ONE = ProcessGroup(0, 1, torch.device("cpu"))
Config = Annotated[Path, typer.Argument(metavar="CONFIG")]
POCKET = Path("configs/train-pocket.yaml")


def prepared(path: Path, **batch: Any) -> tuple[TrainConfig, Embedder, BatchSource]:
    config = load_config(path, TrainConfig)
    config = config.model_copy(update={"batch": config.batch.model_copy(update=batch)})
    torch.manual_seed(0)
    embedder = Embedder.create(config.model, config.data.prompts, temperature=config.loss.temperature).train()
    records = Records.load(config.data.dataset)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    return (
        config,
        embedder,
        BatchSource(config, "direct", records, traces={}, encoder=embedder.encoder(), candidates=candidates),
    )


class Student(nn.Module):
    """The embedder's model and pooling as a module of sentence-transformers."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        inputs = {name: features[name] for name in names if name in features}
        with self.embedder.casting():
            states = self.embedder.model.model(**inputs, use_cache=False).last_hidden_state
        return features | {"sentence_embedding": pool_states(states, features["attention_mask"].sum(1) - 1)}

    def save(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


def features_of(source: BatchSource, step: int) -> list[dict[str, Tensor]]:
    """Returns the queries and positives of `source.make_batch(step)`, each side as one padded batch in the same order."""
    items = [source.records.item(int(i)) for i in source.sampler.epoch(0)[step]]
    queries = [source.encode_query(item, 0)[0] for item in items]
    found = source.candidates.fetch(source.make_batch(step).dids)
    sides = []
    for rows in (queries, [source.encode_candidate(candidate) for candidate in found]):
        inputs = source.encoder.make_chunk(rows).to(ONE.device).inputs  # with the processor's pixel values
        del inputs["position_ids"]  # (3, rows, length) cannot be split by rows; the model computes them itself
        inputs["num_images_per_sample"] = torch.tensor([len(row.pictures) for row in rows])
        sides.append(inputs)
    return sides


@app.command()
def step(config: Config = POCKET, queries: int = 64, chunk: int = 16, steps: int = 4, rounds: int = 3) -> None:
    """Times a step without CE; model, batches, rows per forward pass and pooling are equal. Preparing batches is not counted."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    settings, embedder, source = prepared(config, queries=queries, chunk=chunk, forward=None)
    loss = settings.loss.model_copy(update={"generation_weight": 0.0, "route_weight": 0.0})
    batches = [source.make_batch(i) for i in range(steps)]
    whole = [_held(batch) for batch in batches]
    sides = [features_of(source, i) for i in range(steps)]
    theirs = CachedMultipleNegativesRankingLoss(
        SentenceTransformer(modules=[Student(embedder)], device="cpu"), scale=float(embedder.scale), mini_batch_size=chunk
    )

    def cached(inputs: list[dict[str, Tensor]]) -> None:
        theirs([dict(side) for side in inputs], torch.empty(0)).backward()

    ways: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "sentence-transformers, cached": (cached, sides),
        "ours, gradient caching": (lambda batch: train_step(embedder, batch, loss, ONE), batches),
        "ours, batch in one pass": (lambda batch: train_step(embedder, batch, loss, ONE), whole),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, (run, inputs) in ways.items():
            began = time.perf_counter()
            for one in inputs:
                embedder.zero_grad()
                run(one)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["sentence-transformers, cached"])
    table = Table(f"step of {queries} pairs, {chunk} rows per pass", "samples/s", "ratio", "range of ratios")
    for name, values in seconds.items():
        ratios = sorted(b / v for b, v in zip(seconds["sentence-transformers, cached"], values, strict=True))
        median = statistics.median(values)
        table.add_row(name, f"{queries * steps / median:.1f}", f"{base / median:.2f}", f"{ratios[0]:.2f}-{ratios[-1]:.2f}")
    console.print(table)


def _held(batch: Batch) -> Batch:
    """Returns the same batch as one micro-batch, so that the graph of the first pass is kept."""
    return Batch(
        batch.step, batch.ids, batch.queries, batch.candidates, batch.dids, batch.positives, batch.reasoning, at_once=True
    )


MEASURED = """
import json, resource, sys
from pathlib import Path
from bench.train import ONE, prepared
from trainer.data.dataset import Records
from trainer.training.step import train_step
queries = int(sys.argv[2])
config, embedder, source = prepared(Path(sys.argv[1]), queries=queries, chunk=int(sys.argv[3]), forward=None)
batch = source.make_batch(0)
anonymous = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024
batch_mib = sum(t.numel() * t.element_size() for c in [*batch.queries, *batch.candidates] for t in c.inputs.values()) / 2**20
import threading, time
before, most, over = anonymous(), 0.0, threading.Event()
def watch():
    global most
    while not over.wait(0.02):
        most = max(most, anonymous())
thread = threading.Thread(target=watch)
thread.start()
train_step(embedder, batch, config.loss, ONE)
over.set(); thread.join()
print(json.dumps({"queries": queries, "beyond": most - before, "batch": batch_mib}))
"""


@app.command()
def memory(config: Config = POCKET, chunk: int = 16, batches: Annotated[str, typer.Option()] = "64,256,1024") -> None:
    """Measures each batch size in its own process: the memory of a step beyond model and prepared batch."""
    table = Table("global batch", "peak of the step, MiB", "the batch's own tensors, MiB")
    for queries in batches.split(","):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(config), queries, str(chunk)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        table.add_row(queries, f"{found['beyond']:,.0f}", f"{found['batch']:,.0f}")
    console.print(table)


@app.command()
def vision(pairs: int = 4, chunk: int = 4, width: int = 64, rounds: int = 2) -> None:
    """The 32 blocks and windows of Qwen2.5-VL's tower at a reduced width (`bench/vision.py`)."""
    from bench.vision import table

    console.print(table(pairs, chunk, width, rounds))


@app.command()
def adaptive(
    run: Annotated[Path, typer.Argument(metavar="RUN")] = Path("build/pocket-train"), split: str = "test", rounds: int = 3
) -> None:
    """Compares TRACE on all queries with the bound: bypassing queries embedded directly, reasoning ones with traces."""
    config = load_config(run / "train.json", TrainConfig)
    embedder = Embedder.load(run / "trace" / "model", config.model).fold_adapter()  # as it is served
    embedding = AdaptiveEmbedder(embedder, config.adaptive)
    layout, images = Layout.open(config.data.mbeir), training_store(config)
    known = choose("--split", split, SPLITS)
    rows = [
        row
        for task in DATASET_TASKS
        if layout.queries(known, task).is_file()
        for row in QueryFile(layout, task, known).encode(embedding.encoder, images)
    ]
    routed = embedding.embed(rows, route="learned")
    easy = [row for row, one in zip(rows, routed, strict=True) if not one.reasoned]
    hard = [row for row, one in zip(rows, routed, strict=True) if one.reasoned]
    rates: dict[str, list[float]] = {"direct": [], "reason": [], "trace": []}
    for _ in range(rounds):
        for name, part, route in (
            ("direct", easy, "always-direct"),
            ("reason", hard, "always-reason"),
            ("trace", rows, "learned"),
        ):
            began = time.perf_counter()
            embedding.embed(part, route=route)  # type: ignore[arg-type]
            rates[name].append(len(part) / (time.perf_counter() - began) if part else float("inf"))
    share = len(hard) / len(rows)
    bounds = [1 / ((1 - share) / d + share / r) for d, r in zip(rates["direct"], rates["reason"], strict=True)]
    ratios = sorted(t / b for t, b in zip(rates["trace"], bounds, strict=True))
    table = Table("queries", "queries/s")
    table.add_row(f"bypassing ({len(easy)}), embedded directly", f"{statistics.median(rates['direct']):.0f}")
    table.add_row(f"reasoning ({len(hard)}), embedded with traces", f"{statistics.median(rates['reason']):.0f}")
    table.add_row(f"TRACE on all {len(rows)}, think rate {share:.1%}", f"{statistics.median(rates['trace']):.0f}")
    table.add_row("bound at that think rate", f"{statistics.median(bounds):.0f}")
    console.print(table)
    console.print(f"ratio to the bound: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


if __name__ == "__main__":
    app()
