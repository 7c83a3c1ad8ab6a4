"""Ways to embed adaptively with one student, in one run: transformers, and what vLLM offers.

    python -m bench.engines build/pocket-train

* `transformers`: today's decoding loop (`adaptive.engine: transformers`).
* `a`: one request, whose last state is kept where the logits are made (`adaptive.engine: vllm`).
* `b`: a request that writes the trace, then a pooling request of prompt and trace in a second engine.
* `c`: vLLM's `extract_hidden_states` with its example connector.
* `p`: what a trace's confidence costs: `a` without it, and with vLLM's own log-probabilities besides.

Queries go through the same workers as in `eval`, images read and prepared included. All ways run in float32 and alternate.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.mbeir import DATASET_TASKS
from schemas.training import RouteChoice, TrainConfig
from trainer.data.encoding import EncodedSequence
from trainer.embedding.embed import QueryFile, Range
from trainer.embedding.queries import Place, QueryUnit
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.vllm_engine import VllmEngine
from trainer.embedding.vllm_engine_start import start_engine
from trainer.embedding.workers import EmbedderSpec, LocalPoolEmbedder
from trainer.model.location import load_settings, model_directory

Embedded = dict[Place, QueryEmbedding]
console = Console()


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN")] = Path("build/pocket-train"),
    each: Annotated[int, typer.Option(help="Queries of a dataset-task.")] = 40,
    candidates: Annotated[int, typer.Option(help="Candidates of the first pool.")] = 512,
    rounds: int = 3,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
    ways: Annotated[str, typer.Option(help="Which are run besides transformers.")] = "abc",
) -> None:
    settings = load_settings(run, ["model.autocast=false", *(overrides or ())])
    model = model_directory(settings, run, "trace")
    layout = Layout.open(settings.data.mbeir)
    tasks = [task for task in DATASET_TASKS if layout.queries("test", task).is_file()]
    files = [QueryFile(layout, task, "test") for task in tasks]

    def units(route: RouteChoice, chosen: set[Place] | None = None) -> list[QueryUnit]:
        made = []
        for file in files:
            part = [one for one in file.queries[:each] if chosen is None or (file.task, one.qid) in chosen]
            if part:
                made.append(QueryUnit(tuple((file.task, one.qid) for one in part), tuple(map(file.student_query, part)), route))
        return made

    def start(engine: str) -> tuple[LocalPoolEmbedder, float, float]:
        """(workers, MiB that they take, seconds to start)."""
        before, began = _mib(), time.perf_counter()
        changed = settings.model_copy(update={"adaptive": settings.adaptive.model_copy(update={"engine": engine})})
        workers = LocalPoolEmbedder(EmbedderSpec(changed, model).embedder(), changed)
        return workers, _mib() - before, time.perf_counter() - began

    workers = {"transformers": start("transformers")}
    if "a" in ways:
        workers["a"] = start("vllm")
    table = Table("way", "queries/s", "ratio", "least cosine", "equal routes, traces", "MiB", "s to start")
    rates: dict[str, list[float]] = {name: [] for name in workers}
    embedded: dict[str, Embedded] = {}
    for worker, _, _ in workers.values():
        _embed(worker, units("learned"))  # a CPU compiles its products for every new shape
    for number in range(rounds):
        for name, (worker, _, _) in workers.items():
            embedded[name], seconds = _embed(worker, units("learned"))
            rates[name].append(len(embedded[name]) / seconds)
            console.print(f"round {number + 1}: {name} {rates[name][-1]:.1f} queries/s")
    ours = embedded["transformers"]
    for name, (_, mib, seconds) in workers.items():
        ratio = statistics.median(b / a for a, b in zip(rates["transformers"], rates[name], strict=True))
        speed = (f"{statistics.median(rates[name]):.1f}", f"{ratio:.2f}")
        table.add_row(name, *speed, *_agreement(ours, embedded[name]), f"{mib:,.0f}", f"{seconds:.0f}")
    console.print(table)
    think, written = (sum(getattr(one, of) for one in ours.values()) / len(ours) for of in ("reasoned", "tokens"))
    console.print(f"{len(ours):,} queries, think rate {think:.1%}, {written:.1f} tokens each; medians of {rounds} rounds")
    if "a" in ways:
        _bound(workers["a"][0], units, embedded["a"], rounds)
        with CandidatePool.open(layout.local_pool(tasks[0], "test") or Path(), settings.data.candidate_cache) as pool:
            _pools({name: worker for name, (worker, _, _) in workers.items()}, pool, candidates)
    if "p" in ways:
        _confidence(workers["a"][0], units("always-reason"), rounds)
    if "b" in ways:
        console.print(_two_engines(workers["a"][0], units("learned"), ours))
    for worker, _, _ in workers.values():
        worker.__exit__(None, None, None)
    if "c" in ways:
        console.print(f"c: {escape(_extract(settings, model))}")


def _embed(worker: LocalPoolEmbedder, units: Sequence[QueryUnit]) -> tuple[Embedded, float]:
    began, embedded = time.perf_counter(), dict[Place, QueryEmbedding]()
    for part in worker.embed_queries(units):
        embedded |= part.embeddings
    return embedded, time.perf_counter() - began


def _agreement(ours: Embedded, theirs: Embedded) -> tuple[str, str]:
    pairs = [(one, theirs[place]) for place, one in ours.items()]
    cosines = [float(torch.nn.functional.cosine_similarity(a.vector.float(), b.vector.float(), dim=0)) for a, b in pairs]
    routes, traces = (sum(getattr(a, name) == getattr(b, name) for a, b in pairs) for name in ("reasoned", "trace"))
    return f"{min(cosines):.6f}", f"{routes}, {traces} of {len(pairs)}"


def _bound(worker: LocalPoolEmbedder, units: Callable[..., list[QueryUnit]], embedded: Embedded, rounds: int) -> None:
    """What its think rate allows: bypassing queries embedded directly, reasoning ones with traces, one after the other."""
    hard = {place for place, one in embedded.items() if one.reasoned}
    ratios = []
    for _ in range(rounds):
        parts = [(units("always-direct", set(embedded) - hard)), units("always-reason", hard)]
        bound = sum(_embed(worker, part)[1] for part in parts if part)
        ratios.append(bound / _embed(worker, units("learned"))[1])
    console.print(f"a: {statistics.median(ratios):.2f} of what its think rate allows ({min(ratios):.2f} to {max(ratios):.2f})")


def _pools(workers: dict[str, LocalPoolEmbedder], pool: CandidatePool, count: int) -> None:
    spans, vectors, rates = [Range(0, min(count, len(pool)))], {}, {}
    for name, worker in workers.items():
        list(worker.embed_ranges(pool, spans))
        began = time.perf_counter()
        ((_, part),) = worker.embed_ranges(pool, spans)
        rates[name], vectors[name] = len(part.vectors) / (time.perf_counter() - began), part.vectors.astype(np.float32)
    least = (vectors["transformers"] * vectors["a"]).sum(1).min()
    console.print(
        f"candidates/s of {pool.path.name}: "
        + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        + f"; least product {least:.5f}"
    )


def _confidence(worker: LocalPoolEmbedder, units: list[QueryUnit], rounds: int) -> None:
    """Queries/s relative to `a`, when every query reasons."""
    from trainer.embedding import state_keeper

    engine = worker._worker.engine
    assert isinstance(engine, VllmEngine)

    def with_log_probabilities(*given: Any, **more: Any) -> Any:
        params = VllmEngine._params(engine, *given, **more)
        params.logprobs = 0
        return params

    ways: dict[str, AbstractContextManager[Any]] = {
        "a": nullcontext(),
        "without a confidence": patch.object(state_keeper, "_best_log_p", lambda logits: logits.new_zeros(len(logits))),
        "with vLLM's log-probabilities besides": patch.object(engine, "_params", with_log_probabilities),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with way:
                embedded, seconds = _embed(worker, units)
            rates[name].append(len(embedded) / seconds)
    for name, own in rates.items():
        ratios = [one / base for one, base in zip(own, rates["a"], strict=True)]
        console.print(
            f"{name}: {statistics.median(own):.1f} queries/s, {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _two_engines(worker: LocalPoolEmbedder, units: list[QueryUnit], ours: Embedded) -> str:
    """Beside `a`'s engine, which writes the traces, and in the same round as `a` once more."""
    from vllm import PoolingParams

    first = worker._worker.engine
    assert isinstance(first, VllmEngine)
    before, began = _mib(), time.perf_counter()
    options = {
        **first.options,
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": {"seq_pooling_type": "LAST", "use_activation": True},
    }
    for name in ("logits_processors", "worker_extension_cls"):
        options.pop(name)
    second = start_engine(options)
    mib, seconds = _mib() - before, time.perf_counter() - began
    both: Embedded = {}
    for timed in (False, True):
        began = time.perf_counter()
        for unit in units:
            rows = {
                place: query.encode(first.encoder, worker._worker.images)
                for place, query in zip(unit.places, unit.queries, strict=True)
            }
            written = dict(zip(rows, first.embed(list(rows.values()), route="learned"), strict=True))
            traced = [EncodedSequence(row.name, row.prompt, row.pictures, written[place].trace) for place, row in rows.items()]
            by_key = {f"{timed}-{place[0].name}-{place[1]}": place for place in rows}
            for key, inputs in zip(by_key, first.make_inputs(traced), strict=True):
                second.add_request(key, inputs, PoolingParams(task="embed"))
            while second.has_unfinished_requests():
                for output in second.step():
                    place = by_key[output.request_id]
                    both[place] = written[place]._replace(vector=torch.as_tensor(output.outputs.data))
        rate = len(both) / (time.perf_counter() - began)
    alone, took = _embed(worker, units)
    second.engine_core.shutdown()  # after which the first one, in the same process, cannot go on
    cosine, equal = _agreement(ours, both)
    ratio = rate * took / len(alone)
    return f"b: {ratio:.2f} of a's queries/s; least cosine {cosine}, {equal}; {mib:,.0f} MiB and {seconds:.0f} s to start beside a's"


def _extract(settings: TrainConfig, model: Path) -> str:
    """What becomes of one request."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    from trainer.model.metadata import EmbedderMetadata
    from trainer.model.whole_weights import whole_weights

    directory = whole_weights(settings, model, EmbedderSpec(settings, model).load)
    assert EmbedderMetadata.read(directory).merged
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {
            "model": str(directory),
            "runner": "generate",
            "dtype": "float32",
            "max_model_len": 512,
            "enforce_eager": True,
            "speculative_config": {
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [1]}},
            },
            "kv_transfer_config": {
                "kv_connector": "ExampleHiddenStatesConnector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": place},
            },
        }
        try:
            engine = start_engine(options)
            engine.add_request("0", tokens_input([5, 6, 7, 8]), SamplingParams(temperature=0, max_tokens=2, detokenize=False))
            while engine.has_unfinished_requests():
                engine.step()
        except Exception as error:  # noqa: BLE001 (what it is is the result)
            return f"not measured, it does not run here: {type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
        written = [path.stat().st_size for path in Path(place).rglob("*.safetensors")]
        engine.engine_core.shutdown()
        return f"one request of 4 + 2 tokens wrote {len(written)} file of {sum(written):,} bytes, from before the last norm"


def _mib() -> float:
    """Memory of this process and all that it started, shared pages once."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


if __name__ == "__main__":
    typer.run(main)
