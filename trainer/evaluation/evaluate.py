"""M-BEIR's table for an embedder: pools and queries embedded, searched exactly, scored as UniIR does.

Everything is written in UniIR's layout below the evaluation's directory, so `mbeir-cot score` computes the same numbers from
the files again. So does UniIR's own code, unless queries could not be read (`data.skip_unreadable`): here they count as misses,
and UniIR's code does not know of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.progress_meter import Meter
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, Query
from schemas.record import record_id
from schemas.training import RouteChoice, TrainConfig, Variant
from trainer.data.exclusions import Exclusion, describe_exclusions, save_exclusions
from trainer.embedding.embed import QueryFile, save_queries
from trainer.embedding.files import EmbeddingFiles, empty_unless_made_by, exclusions_path, ids_path, pool_name
from trainer.embedding.queries import Place, QueryCosts, QueryEmbeddings
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.recovered_candidates import embed_whole_pool
from trainer.embedding.workers import EmbedderSpec, Workers, open_workers
from trainer.evaluation.hit_rates import Score
from trainer.evaluation.query_log import make_entry, queries_file, write_query_log
from trainer.evaluation.results import Result, make_task_result, trace_accuracy
from trainer.evaluation.uniir_files import score_directory, write_table
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
            bring = f"`mbeir-cot mbeir fetch {self.layout.root} --no-images`"
            raise InputError(f"{self.layout.root} has no {self.split} queries", f"{bring}, or set evaluation.split")
        self.notices: list[str] = []
        """What a reader of the table must know."""
        self.files = {task: QueryFile(self.layout, task, self.split) for task in self.tasks}
        for task, file in self.files.items():
            if not file.queries:
                again = f"remove it, then {self.layout.fetch_remedy(task.dataset, self.split)}"
                raise InputError(f"{self.layout.queries(self.split, task)} holds no query", again)
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
        images, most = training_store(self.config), self.config.data.most_unreadable
        with Meter("candidates", total, unit="candidates") as meter:
            for task, pool in pools.items():
                out = files.candidates(task, self.split)
                out.parent.mkdir(parents=True, exist_ok=True)
                ids = np.asarray(pool.hashed_dids, np.int64)
                embed = partial(self.workers.embed_ranges, pool)
                excluded = embed_whole_pool(out, embed, ids, images, meter.advance, most=most)
                self._notice_excluded_candidates(task, excluded, exclusions_path(out))
                pool.close()

    def check_positives(self, task: DatasetTask, pool: CandidatePool) -> None:
        """Notes queries whose positives the pool lacks: misses, as in UniIR's scorer. Raises InputError if all are such."""
        listed = [(query.qid, query.pos_cand_list) for query in self.files[task].queries if query.pos_cand_list]
        lost = [qid for qid, dids in listed if not any(did in pool for did in dids)]
        if lost and len(lost) == len(listed):
            fetch = self.layout.fetch_remedy(task.dataset, self.split)
            raise InputError(
                f"{pool_name(task, self.split)} holds no positive of any of the {len(listed):,} queries of {task.name}",
                f"the pool is of another split or version: remove it, then {fetch}",
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
            positives = [query.pos_cand_list for query in self.files[task].queries]
            missed = sum(bool(dids) and gone.issuperset(dids) for dids in positives)
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
        empty_unless_made_by(self.directory / "embed" / suffix, made_by)

    @property
    def workers(self) -> Workers:
        """The processes that embed. They load the model on first use and release it when the evaluation is closed."""
        if self._workers is None:
            spec = EmbedderSpec(self.config, self.model)
            self._workers = self._open.enter_context(open_workers(spec, logs=self.directory))
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
        fallback: float | None = None,
    ) -> tuple[Result, dict[str, QueryEmbedding]]:
        """Embeds all queries, scores them, and returns the table and each query's embedding by record id.

        given: record id -> whether it reasons, for route ``given``. written: record id -> trace to embed with instead of the
        student's own. answers: record id -> the right answer, to count right traces. fallback: see `adaptive.fallback`.
        """
        files = EmbeddingFiles(self.directory, suffix)
        self._link_pools(files)
        of_task = self.embed_queries(name, route, given, written, fallback=fallback)
        by_id: dict[str, QueryEmbedding] = {}
        accuracy: dict[DatasetTask, float | None] = {}
        for task, (embeddings, _) in of_task.items():
            save_queries(embeddings, self.files[task], files.queries(task, self.split), self._unreadable(task))
            ids = [self.record_id(task, query) for query in self.files[task].queries]
            of_this = dict(zip(ids, embeddings, strict=True))
            by_id |= of_this
            accuracy[task] = trace_accuracy(of_this, answers) if answers else None
        scores = self._score(files)
        self._write_query_log(suffix, by_id)
        tasks = [
            make_task_result(task, scores, of_task[task][1], accuracy=accuracy[task], unreadable=len(self._unreadable(task)))
            for task in self.tasks
        ]
        result = Result(name, tasks)
        logger.info("%s: local mean %.4f, think rate %.3f", name, result.mean(), result.think_rate)
        return result, by_id

    def embed_queries(
        self,
        name: str,
        route: RouteChoice,
        given: Mapping[str, bool] | None = None,
        written: Mapping[str, str] | None = None,
        *,
        fallback: float | None = None,
    ) -> dict[DatasetTask, tuple[list[QueryEmbedding], QueryCosts]]:
        """The embeddings of each file's queries, in order, without searching; the arguments are those of `run`."""
        ids = {(task, query.qid): self.record_id(task, query) for task, file in self.files.items() for query in file.queries}
        first = self._queries is None
        if self._queries is None:
            self._queries = QueryEmbeddings(self.files, self.workers)
        with Meter(name, len(ids), unit="queries") as meter:
            embedded = self._queries.embed(
                route,
                given={place: given.get(record, False) for place, record in ids.items()} if given is not None else None,
                written={place: written.get(record, "") for place, record in ids.items()} if written is not None else None,
                fallback=fallback,
                advance=meter.advance,
            )
        if first:
            self._notice_excluded_queries(self._queries.left_out)
        return embedded

    def _unreadable(self, task: DatasetTask) -> list[Exclusion]:
        """The task's queries that were left out."""
        excluded = self._queries.left_out if self._queries is not None else {}
        return [one for (of_task, _), one in excluded.items() if of_task == task]

    def record_id(self, task: DatasetTask, query: Query) -> str:
        return record_id(self.split, task.dataset, task.task_id, query.qid)

    def _write_query_log(self, suffix: str, by_id: Mapping[str, QueryEmbedding]) -> None:
        entries = []
        for task, file in self.files.items():
            for query in file.queries:
                identifier = self.record_id(task, query)
                entries.append(make_entry(identifier, task, query, file.instruction(query), by_id[identifier]))
        write_query_log(queries_file(self.directory, suffix, self.split), entries)

    def _link_pools(self, files: EmbeddingFiles) -> None:
        """All routings of an embedder have the same candidates: links, not copies."""
        for task in self.tasks:
            pair = files.candidates(task, self.split), self._pools.candidates(task, self.split)
            for own, shared in (pair, (ids_path(pair[0]), ids_path(pair[1]))):
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
        write_table(files, scores, self.split)
        return scores

    def _pool(self, task: DatasetTask) -> Path:
        path = self.layout.local_pool(task, self.split)
        if path is None or not path.is_file():
            raise InputError(
                f"no candidate pool {pool_name(task, self.split)} in {self.layout.root}",
                self.layout.fetch_remedy(task.dataset, self.split),
            )
        return path
