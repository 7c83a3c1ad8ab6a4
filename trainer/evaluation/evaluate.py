"""M-BEIR's table for an embedder: pools and queries embedded, searched exactly, scored as UniIR does.

Everything is written in UniIR's layout below the evaluation's directory, so `mbeir-cot score` computes the same numbers from
the files again. So does UniIR's own code, unless queries could not be read (`data.skip_unreadable`): here they count as misses,
and UniIR's code does not know of them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from pipeline.files.durable import replace_text
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.meter import Meter
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, Query
from schemas.record import record_id
from schemas.training import RouteChoice, TrainConfig, Variant
from trainer.data.exclusions import Exclusion, describe_exclusions, save_exclusions
from trainer.distributed import ProcessGroup
from trainer.embedding.adaptive import QueryEmbedding
from trainer.embedding.embed import QueryFile, embed_pool, save_queries
from trainer.embedding.files import EmbeddingFiles, exclusions_path, ids_path, pool_name
from trainer.embedding.queries import Place, QueryCosts, QueryEmbeddings
from trainer.embedding.workers import EmbedderSpec, LocalPoolEmbedder, RayPoolEmbedder, Workers
from trainer.evaluation.results import Result, TaskResult
from trainer.evaluation.uniir import Score, format_table, headline_k, score_directory
from trainer.model.metadata import fingerprint
from trainer.retrieval.topk import search_device

logger = logging.getLogger(__name__)

ROUTES: Final[dict[Variant, RouteChoice]] = {"trace": "learned", "direct": "always-direct", "always-reason": "always-reason"}


class Evaluation(AbstractContextManager["Evaluation"]):
    """One embedder on one split. Pools are embedded once; a query is embedded once for each trace that a routing needs."""

    def __init__(self, config: TrainConfig, model: Path | None, directory: Path) -> None:
        """`model`: a finished embedder's directory; None for the untrained base."""
        self.config, self.model, self.directory = config, model, directory
        self.split = config.evaluation.split
        self.layout = Layout.open(config.data.mbeir)
        self.tasks = [task for task in DATASET_TASKS if self.layout.queries(self.split, task).is_file()]
        if not self.tasks:
            raise InputError(f"{config.data.mbeir} has no {self.split} queries", "download query/ and qrels/ of that split")
        self.notices: list[str] = []
        """What a reader of the table must know."""
        self.files = {task: QueryFile(self.layout, task, self.split) for task in self.tasks}
        for task, file in self.files.items():
            if not file.queries:
                raise InputError(f"{self.layout.queries(self.split, task)} holds no query", "download the file again")
        self._open = ExitStack()
        self._workers: Workers | None = None
        self._queries: QueryEmbeddings | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()
        self._workers = self._queries = None

    def embed_pools(self, suffix: str) -> None:
        """Embeds the local pools of all tasks."""
        files = self._pools = EmbeddingFiles(self.directory, suffix)
        pools = {task: CandidatePool.open(self._pool(task), self.config.data.candidate_cache) for task in self.tasks}
        for task, pool in pools.items():
            self.check_positives(task, pool)
        self.remove_stale_vectors(suffix, {task.name: pool.sha256 for task, pool in pools.items()})
        total = sum(map(len, pools.values()))
        with Meter("candidates", total, unit="candidates") as meter:
            for task, pool in pools.items():
                out = files.candidates(task, self.split)
                out.parent.mkdir(parents=True, exist_ok=True)
                ids = np.asarray(pool.hashed_dids, np.int64)
                excluded = embed_pool(out, partial(self.workers.embed_ranges, pool), ids, meter.advance)
                self._notice_excluded_candidates(task, excluded, exclusions_path(out))
                pool.close()

    def check_positives(self, task: DatasetTask, pool: CandidatePool) -> None:
        """A query whose positives are all missing from the pool counts as a miss, as in UniIR's scorer: that is noted.

        Raises InputError if it is so for all queries.
        """
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

    def _notice_excluded_candidates(self, task: DatasetTask, excluded: Sequence[Exclusion], file: Path) -> None:
        if excluded:
            gone = {one.name for one in excluded}
            missed = sum(
                bool(query.pos_cand_list) and gone.issuperset(query.pos_cand_list) for query in self.files[task].queries
            )
            self.notices.append(
                f"{task.name}: {describe_exclusions('candidates', excluded, file)}; queries without another positive, "
                f"which count as misses: {missed:,}"
            )

    def _notice_excluded_queries(self, excluded: Mapping[Place, Exclusion]) -> None:
        if excluded:
            file = self.directory / f"unreadable_queries_{self.split}.json"
            named = [one._replace(name=f"{task.name}/{one.name}") for (task, _), one in excluded.items()]
            save_exclusions(file, named)
            self.notices.append(describe_exclusions("queries", named, file) + "; they count as misses")

    def remove_stale_vectors(self, suffix: str, pools: dict[str, str]) -> None:
        """Removes vectors that were made by other weights, pools or settings. pools: dataset-task -> SHA-256 of its pool."""
        config = self.config
        made_by = {
            "model": fingerprint(self.model) if self.model is not None else config.model.model_dump(mode="json"),
            "seed": config.seed if self.model is None else None,  # the base's new token row depends on it
            "prompts": config.data.prompts,
            "max_candidate_chars": config.data.max_candidate_chars,
            **({"skip_unreadable": True} if config.data.skip_unreadable else {}),
            **({"engine": config.adaptive.engine} if config.adaptive.engine != "transformers" else {}),
            "pools": pools,
        }
        directory = self.directory / "embed" / suffix
        marker, text = directory / "made_by.json", json.dumps(made_by, sort_keys=True)
        if not marker.is_file() or marker.read_text(encoding="utf-8") != text:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        replace_text(marker, text)

    @property
    def workers(self) -> Workers:
        """The processes that embed. They load the model on first use and release it when the evaluation is closed."""
        if self._workers is None:
            spec, count = EmbedderSpec(self.config, self.model), self.config.evaluation.workers
            if count == 1:
                self._workers = self._open.enter_context(LocalPoolEmbedder(spec.embedder(), self.config))
            else:
                on_gpu = ProcessGroup.join(self.config.device).device.type == "cuda"
                self._workers = self._open.enter_context(RayPoolEmbedder(spec, count, gpu=on_gpu, logs=self.directory))
        return self._workers

    def run(
        self,
        name: str,
        suffix: str,
        route: RouteChoice,
        *,
        given: Mapping[str, bool] | None = None,
        written: Mapping[str, str] | None = None,
        answers: Mapping[str, str] | None = None,
    ) -> tuple[Result, dict[str, QueryEmbedding]]:
        """Embeds all queries, scores them, and returns the table and each query's embedding by record id.

        given: record id -> whether it reasons, for route ``given``. written: record id -> trace to embed with instead of the
        student's own. answers: record id -> the right answer, to count right traces.
        """
        files = EmbeddingFiles(self.directory, suffix)
        self._link_pools(files)
        of_task = self._embed_queries(name, route, given, written)
        by_id: dict[str, QueryEmbedding] = {}
        accuracy: dict[DatasetTask, float | None] = {}
        for task, (embeddings, _) in of_task.items():
            save_queries(embeddings, self.files[task], files.queries(task, self.split), self._unreadable(task))
            ids = [self._record_id(task, query) for query in self.files[task].queries]
            of_this = dict(zip(ids, embeddings, strict=True))
            by_id |= of_this
            accuracy[task] = _accuracy(of_this, answers) if answers else None
        scores = self._score(files)
        self._write_queries(suffix, by_id)
        tasks = [
            _task_result(task, scores, of_task[task][1], accuracy=accuracy[task], unreadable=len(self._unreadable(task)))
            for task in self.tasks
        ]
        result = Result(name, tasks)
        logger.info("%s: local mean %.4f, think rate %.3f", name, result.mean(), result.think_rate)
        return result, by_id

    def _embed_queries(
        self, name: str, route: RouteChoice, given: Mapping[str, bool] | None, written: Mapping[str, str] | None
    ) -> dict[DatasetTask, tuple[list[QueryEmbedding], QueryCosts]]:
        ids = {(task, query.qid): self._record_id(task, query) for task, file in self.files.items() for query in file.queries}
        first = self._queries is None
        if self._queries is None:
            self._queries = QueryEmbeddings(self.files, self.workers)
        with Meter(name, len(ids), unit="queries") as meter:
            embedded = self._queries.embed(
                route,
                given={place: given.get(record, False) for place, record in ids.items()} if given is not None else None,
                written={place: written.get(record, "") for place, record in ids.items()} if written is not None else None,
                advance=meter.advance,
            )
        if first:
            self._notice_excluded_queries(self._queries.left_out)
        return embedded

    def _unreadable(self, task: DatasetTask) -> list[Exclusion]:
        """The task's queries that were left out."""
        excluded = self._queries.left_out if self._queries is not None else {}
        return [one for (of_task, _), one in excluded.items() if of_task == task]

    def _record_id(self, task: DatasetTask, query: Query) -> str:
        return record_id(self.split, task.dataset, task.task_id, query.qid)

    def _write_queries(self, suffix: str, by_id: Mapping[str, QueryEmbedding]) -> None:
        """A line for each query: what it asks and how it was embedded (see `queries_file`)."""
        lines = []
        for task, file in self.files.items():
            for query in file.queries:
                identifier = self._record_id(task, query)
                entry = {
                    "id": identifier,
                    "task": task.name,
                    "qid": query.qid,
                    "instruction": file.instruction(query),
                    "text": query.query_txt,
                    "image": query.query_img_path,
                    "positives": list(query.pos_cand_list),
                    **_route_entry(by_id[identifier]),
                }
                lines.append(json.dumps(entry, ensure_ascii=False))
        queries_file(self.directory, suffix, self.split).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _link_pools(self, files: EmbeddingFiles) -> None:
        """All routings of an embedder have the same candidates: links, not copies."""
        for task in self.tasks:
            for own, shared in zip(
                _with_ids(files.candidates(task, self.split)), _with_ids(self._pools.candidates(task, self.split)), strict=True
            ):
                if own != shared:
                    own.parent.mkdir(parents=True, exist_ok=True)
                    own.unlink(missing_ok=True)
                    own.hardlink_to(shared)

    def _score(self, files: EmbeddingFiles) -> list[Score]:
        pools = ("single", "union") if self.config.evaluation.union else ("single",)
        scores: list[Score] = []
        device = search_device(self.config.device)
        for of_search, _ in score_directory(files, self.layout, split=self.split, pools=pools, device=device):  # type: ignore[arg-type]
            scores += of_search
        files.tables.mkdir(parents=True, exist_ok=True)
        (files.tables / f"eval_results_{self.split}.tsv").write_text(format_table(scores), newline="", encoding="utf-8")
        return scores

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


def _route_entry(embedding: QueryEmbedding) -> dict[str, Any]:
    return {
        "reasoned": embedding.reasoned,
        "ended": embedding.ended,
        "p_direct": round(embedding.p_direct, 6),
        "tokens": embedding.tokens,
        "trace": embedding.trace,
    }


def _with_ids(path: Path) -> tuple[Path, Path]:
    return path, ids_path(path)


def _accuracy(embedded: Mapping[str, QueryEmbedding], answers: Mapping[str, str]) -> float | None:
    """Share of the queries with a known answer whose trace ends in it."""
    known = [identifier for identifier in embedded if identifier in answers]
    if not known:
        return None
    return float(np.mean([embedded[i].trace.strip().endswith(answers[i].strip()) for i in known]))


def _task_result(
    task: DatasetTask, scores: Sequence[Score], costs: QueryCosts, *, accuracy: float | None, unreadable: int
) -> TaskResult:
    k = headline_k(task)
    by_pool = {score.pool: score.value for score in scores if score.task == task and score.k == k}
    return TaskResult(task.name, k, by_pool["single"], by_pool.get("union"), costs, accuracy, unreadable)
