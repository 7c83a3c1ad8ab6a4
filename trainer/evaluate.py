"""M-BEIR's table for an embedder: pools and queries embedded, searched exactly, scored as UniIR does.

Everything is written in UniIR's layout below the evaluation's directory, so `mbeir-cot score` (or UniIR's own code) gives the
same numbers again from the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.durable import replace_text
from pipeline.families import family_of
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.stores import training_store
from pipeline.progress import Meter
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask
from schemas.record import record_id
from schemas.training import RouteChoice, TrainConfig, Variant
from trainer.adaptive import AdaptiveEmbedder, Embedded
from trainer.embed import QueryCosts, QueryFile, embed_pool, embed_queries, save_queries
from trainer.index import fingerprint
from trainer.pool_workers import Here, OnRay, Source, Workers
from trainer.uniir import EmbeddingFiles, Score, headline_k, ids_path, pool_name, score_directory, table

ROUTES: Final[dict[Variant, RouteChoice]] = {"trace": "learned", "direct": "always-direct", "always-reason": "always-reason"}


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One line of a table: hit rates at the headline k, and what the queries cost."""

    task: str
    k: int
    local: float
    union: float | None
    costs: QueryCosts
    trace_accuracy: float | None = None
    """Share of the queries with a known right answer whose own trace ends in it."""


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    tasks: list[TaskResult]

    def mean(self, family: str | None = None, *, union: bool = False) -> float:
        """Unweighted mean over the dataset-tasks (of a family)."""
        wanted = [
            value
            for one in self.tasks
            if family in (None, family_of(int(one.task[-1])).name)
            for value in [one.union if union else one.local]
            if value is not None
        ]
        return float(np.mean(wanted)) if wanted else float("nan")

    @property
    def think_rate(self) -> float:
        return sum(t.costs.reasoned for t in self.tasks) / max(1, sum(t.costs.queries for t in self.tasks))


class Evaluation:
    """One embedder on one split. Pools are embedded once; queries as often as there are ways to route them."""

    def __init__(self, config: TrainConfig, model: Path | None, directory: Path, *, quiet: bool = False) -> None:
        """`model`: a finished embedder's directory; None for the untrained base."""
        self.config, self.model, self.directory, self.quiet = config, model, directory, quiet
        self.split = config.evaluation.split
        self.layout = Layout.open(config.data.mbeir)
        self.images = training_store(config)
        self.embedder = Source(config, model).load()
        self.adaptive = AdaptiveEmbedder(self.embedder, config.adaptive)
        self.tasks = [task for task in DATASET_TASKS if self.layout.queries(self.split, task).is_file()]
        if not self.tasks:
            raise InputError(f"{config.data.mbeir} has no {self.split} queries", "download query/ and qrels/ of that split")
        self.notices: list[str] = []
        """What the reader of the table must know."""
        self.files = {task: QueryFile(self.layout, task, self.split) for task in self.tasks}

    def pools(self, suffix: str) -> None:
        """Embeds the local pools of all tasks."""
        files = self._pools = EmbeddingFiles(self.directory, suffix)
        pools = {task: CandidatePool.open(self._pool(task), self.config.data.cache) for task in self.tasks}
        for task, pool in pools.items():
            self._look_for_positives(task, pool)
        self._claim(suffix, {task.name: pool.sha256 for task, pool in pools.items()})
        total = sum(map(len, pools.values()))
        with self._workers() as workers, Meter("candidates", total, unit="candidates", quiet=self.quiet) as meter:
            for task, pool in pools.items():
                out = files.candidates(task, self.split)
                out.parent.mkdir(parents=True, exist_ok=True)
                ids = np.asarray(pool.hashed_dids, np.int64)
                embed_pool(out, partial(workers.embed, pool), ids, meter.advance)
                pool.close()

    def _look_for_positives(self, task: DatasetTask, pool: CandidatePool) -> None:
        """A query whose positives are all missing from the pool cannot be a hit. It counts as a miss, as in UniIR's scorer."""
        listed = [(query.qid, query.pos_cand_list) for query in self.files[task].queries if query.pos_cand_list]
        lost = [qid for qid, dids in listed if not any(did in pool for did in dids)]
        if lost and len(lost) == len(listed):
            raise InputError(
                f"{pool_name(task, self.split)} holds no positive of any of the {len(listed):,} queries of {task.name}",
                "the pool is of another split or version: download cand_pool/local/ and query/ together",
            )
        if lost:
            named = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
            self.notices.append(
                f"{task.name}: the pool holds no positive of {len(lost):,} of {len(listed):,} queries, "
                f"which count as misses ({named})"
            )

    def _claim(self, suffix: str, pools: dict[str, str]) -> None:
        """Removes vectors that other weights, pools or settings have made."""
        config = self.config
        made_by = {
            "model": fingerprint(self.model) if self.model is not None else config.model.model_dump(mode="json"),
            "seed": config.seed if self.model is None else None,  # the base's new token row
            "prompts": config.data.prompts,
            "max_candidate_chars": config.data.max_candidate_chars,
            "pools": pools,
        }
        place = self.directory / "embed" / suffix
        marker, text = place / "made_by.json", json.dumps(made_by, sort_keys=True)
        if not marker.is_file() or marker.read_text(encoding="utf-8") != text:
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        replace_text(marker, text)

    def _workers(self) -> AbstractContextManager[Workers]:
        source, count = Source(self.config, self.model), self.config.evaluation.workers
        if count == 1:
            return nullcontext(Here(source.embedder(self.embedder)))
        return OnRay(source, count, gpu=self.embedder.device.type == "cuda")

    def run(
        self,
        name: str,
        suffix: str,
        route: RouteChoice,
        *,
        given: Mapping[str, bool] | None = None,
        written: Mapping[str, str] | None = None,
        answers: Mapping[str, str] | None = None,
    ) -> tuple[Result, dict[str, Embedded]]:
        """Embeds all queries, scores them, and returns the table and each query's embedding by record id.

        given: record id -> reasons, for route ``given``. written: record id -> trace to embed with instead of the student's
        own. answers: record id -> the right answer, to count right traces.
        """
        files = EmbeddingFiles(self.directory, suffix)
        self._share_pools(files)
        every: dict[str, Embedded] = {}
        costs: dict[DatasetTask, QueryCosts] = {}
        accuracy: dict[DatasetTask, float | None] = {}
        with Meter(name, sum(len(file.queries) for file in self.files.values()), unit="queries", quiet=self.quiet) as meter:
            for task, file in self.files.items():
                ids = [record_id(self.split, task.dataset, task.task_id, query.qid) for query in file.queries]
                flags = [bool(given.get(identifier, False)) for identifier in ids] if given is not None else None
                if written is not None:
                    found, cost = self._given_traces(file, [written.get(identifier, "") for identifier in ids])
                    meter.advance(len(found))
                else:
                    found, cost = embed_queries(
                        self.adaptive, file, self.images, route=route, given=flags, advance=meter.advance
                    )
                save_queries(found, file, files.queries(task, self.split))
                every |= dict(zip(ids, found, strict=True))
                costs[task] = cost
                accuracy[task] = _accuracy(dict(zip(ids, found, strict=True)), answers) if answers else None
        scores = self._scores(files)
        self._write_queries(suffix, every)
        return Result(name, [_task_result(task, scores, costs[task], accuracy[task]) for task in self.tasks]), every

    def _write_queries(self, suffix: str, every: Mapping[str, Embedded]) -> None:
        """What each query was and how it was embedded, a line each: see `queries_file`."""
        lines = []
        for task, file in self.files.items():
            for query in file.queries:
                identifier = record_id(self.split, task.dataset, task.task_id, query.qid)
                one = every[identifier]
                entry = {
                    "id": identifier,
                    "task": task.name,
                    "qid": query.qid,
                    "instruction": file.instruction(query),
                    "text": query.query_txt,
                    "image": query.query_img_path,
                    "positives": list(query.pos_cand_list),
                    "reasoned": one.reasoned,
                    "ended": one.ended,
                    "p_direct": round(one.p_direct, 6),
                    "tokens": one.tokens,
                    "trace": one.trace,
                }
                lines.append(json.dumps(entry, ensure_ascii=False))
        queries_file(self.directory, suffix, self.split).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _share_pools(self, files: EmbeddingFiles) -> None:
        """Ways to route one embedder have the same candidates: links, not copies."""
        for task in self.tasks:
            for own, shared in zip(
                _with_ids(files.candidates(task, self.split)), _with_ids(self._pools.candidates(task, self.split)), strict=True
            ):
                if own != shared:
                    own.parent.mkdir(parents=True, exist_ok=True)
                    own.unlink(missing_ok=True)
                    own.hardlink_to(shared)

    def _scores(self, files: EmbeddingFiles) -> list[Score]:
        pools = ("single", "union") if self.config.evaluation.union else ("single",)
        found: list[Score] = []
        for scores, _ in score_directory(files, self.layout, split=self.split, pools=pools):  # type: ignore[arg-type]
            found += scores
        files.tables.mkdir(parents=True, exist_ok=True)
        (files.tables / f"eval_results_{self.split}.tsv").write_text(table(found), newline="", encoding="utf-8")
        return found

    def _given_traces(self, file: QueryFile, traces: Sequence[str]) -> tuple[list[Embedded], QueryCosts]:
        """Embeddings of queries that are followed by these traces: no word is the student's own."""
        import torch  # noqa: PLC0415

        found: list[Embedded | None] = [None] * len(traces)
        encoder = self.adaptive.encoder
        with torch.inference_mode():
            for start, rows in file.windows(encoder, self.images):
                wanted = [replace(row, written=traces[start + i]) for i, row in enumerate(rows)]
                for chunk in encoder.chunks(wanted, self.config.evaluation.rows, 1 << 20):
                    vectors, _ = self.embedder(chunk.to(self.embedder.device), labelled=False)
                    for place, vector in zip(chunk.places.tolist(), vectors.cpu(), strict=True):
                        trace = traces[start + place]
                        found[start + place] = Embedded(vector, bool(trace), True, trace, 0.0, 0, 0.0)
        reasoned = sum(bool(trace) for trace in traces)
        return [one for one in found if one is not None], QueryCosts(len(traces), reasoned, 0, 0, 0.0, 0.0, 0.0)

    def _pool(self, task: DatasetTask) -> Path:
        path = self.layout.local_pool(task, self.split)
        if path is None or not path.is_file():
            raise InputError(
                f"no candidate pool {pool_name(task, self.split)} in {self.layout.root}", "download cand_pool/local/"
            )
        return path


def queries_file(directory: Path, suffix: str, split: str) -> Path:
    """JSON lines: each query of an evaluation with its route and trace, the text that its embedding followed."""
    return directory / f"queries_{suffix}_{split}.jsonl"


def _with_ids(path: Path) -> tuple[Path, Path]:
    return path, ids_path(path)


def _accuracy(found: Mapping[str, Embedded], answers: Mapping[str, str]) -> float | None:
    asked = [identifier for identifier in found if identifier in answers]
    if not asked:
        return None
    return float(np.mean([found[i].trace.strip().endswith(answers[i].strip()) for i in asked]))


def _task_result(task: DatasetTask, scores: Sequence[Score], costs: QueryCosts, accuracy: float | None) -> TaskResult:
    k = headline_k(task)
    values = {score.pool: score.value for score in scores if score.task == task and score.k == k}
    return TaskResult(task.name, k, values["single"], values.get("union"), costs, accuracy)


def as_json(results: Sequence[Result]) -> str:
    def plain(result: Result) -> dict[str, Any]:
        return {"name": result.name, "tasks": [asdict(t) | {"costs": t.costs._asdict()} for t in result.tasks]}

    return json.dumps([plain(result) for result in results], indent=1)
