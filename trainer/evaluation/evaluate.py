"""M-BEIR's table for an embedder: pools and queries embedded, searched exactly, scored as UniIR does.

Everything is written in UniIR's layout below the evaluation's directory, so `mbeir-cot score` (or UniIR's own code) gives the
same numbers again from the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from pipeline.files.durable import replace_text
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.meter import Meter
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask
from schemas.record import record_id
from schemas.training import RouteChoice, TrainConfig, Variant
from trainer.data.unreadable import LeftOut, save_list, told
from trainer.distributed import ProcessGroup
from trainer.embedding.adaptive import QueryEmbedding
from trainer.embedding.embed import QueryFile, embed_pool, left_out_path, save_queries
from trainer.embedding.files import EmbeddingFiles, ids_path, pool_name
from trainer.embedding.queries import Place, QueryCosts, QueryEmbeddings
from trainer.embedding.workers import EmbedderSpec, LocalPoolEmbedder, RayPoolEmbedder, Workers
from trainer.evaluation.results import Result, TaskResult
from trainer.evaluation.uniir import Score, headline_k, score_directory, table
from trainer.model.embedder import fingerprint
from trainer.retrieval.topk import search_device

ROUTES: Final[dict[Variant, RouteChoice]] = {"trace": "learned", "direct": "always-direct", "always-reason": "always-reason"}


class Evaluation(AbstractContextManager["Evaluation"]):
    """One embedder on one split. Pools are embedded once, and queries once for each trace that a way to route them asks for."""

    def __init__(self, config: TrainConfig, model: Path | None, directory: Path, *, quiet: bool = False) -> None:
        """`model`: a finished embedder's directory; None for the untrained base."""
        self.config, self.model, self.directory, self.quiet = config, model, directory, quiet
        self.split = config.evaluation.split
        self.layout = Layout.open(config.data.mbeir)
        self.tasks = [task for task in DATASET_TASKS if self.layout.queries(self.split, task).is_file()]
        if not self.tasks:
            raise InputError(f"{config.data.mbeir} has no {self.split} queries", "download query/ and qrels/ of that split")
        self.notices: list[str] = []
        """What the reader of the table must know."""
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

    def pools(self, suffix: str) -> None:
        """Embeds the local pools of all tasks."""
        files = self._pools = EmbeddingFiles(self.directory, suffix)
        pools = {task: CandidatePool.open(self._pool(task), self.config.data.candidate_cache) for task in self.tasks}
        for task, pool in pools.items():
            self._look_for_positives(task, pool)
        self._claim(suffix, {task.name: pool.sha256 for task, pool in pools.items()})
        total = sum(map(len, pools.values()))
        workers = self.workers()
        with Meter("candidates", total, unit="candidates", quiet=self.quiet) as meter:
            for task, pool in pools.items():
                out = files.candidates(task, self.split)
                out.parent.mkdir(parents=True, exist_ok=True)
                ids = np.asarray(pool.hashed_dids, np.int64)
                self._say_left_out(task, embed_pool(out, partial(workers.embed, pool), ids, meter.advance), left_out_path(out))
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

    def _say_left_out(self, task: DatasetTask, left_out: Sequence[LeftOut], file: Path) -> None:
        """A positive that is not in the pool's vectors cannot be found."""
        if left_out:
            gone = {one.name for one in left_out}
            missed = sum(
                bool(query.pos_cand_list) and gone.issuperset(query.pos_cand_list) for query in self.files[task].queries
            )
            counted = f"; {missed:,} queries have no other positive and count as misses"
            self.notices.append(f"{task.name}: " + told("candidates", left_out, file) + counted)

    def _say_queries_left_out(self, left_out: Mapping[Place, LeftOut]) -> None:
        if left_out:
            file = self.directory / f"unreadable_queries_{self.split}.json"
            found = [one._replace(name=f"{task.name}/{one.name}") for (task, _), one in left_out.items()]
            save_list(file, found)
            self.notices.append(told("queries", found, file) + "; they are in no number of the table")

    def _claim(self, suffix: str, pools: dict[str, str]) -> None:
        """Removes vectors that other weights, pools or settings have made."""
        config = self.config
        made_by = {
            "model": fingerprint(self.model) if self.model is not None else config.model.model_dump(mode="json"),
            "seed": config.seed if self.model is None else None,  # the base's new token row
            "prompts": config.data.prompts,
            "max_candidate_chars": config.data.max_candidate_chars,
            **({"skip_unreadable": True} if config.data.skip_unreadable else {}),
            "pools": pools,
        }
        place = self.directory / "embed" / suffix
        marker, text = place / "made_by.json", json.dumps(made_by, sort_keys=True)
        if not marker.is_file() or marker.read_text(encoding="utf-8") != text:
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        replace_text(marker, text)

    def workers(self) -> Workers:
        """Who embeds; the model is loaded when they are first asked for, and given up when the evaluation is closed."""
        if self._workers is None:
            source, count = EmbedderSpec(self.config, self.model), self.config.evaluation.workers
            if count == 1:
                self._workers = LocalPoolEmbedder(source.embedder(), self.config)
            else:
                on_gpu = ProcessGroup.join(self.config.device).device.type == "cuda"
                self._workers = self._open.enter_context(RayPoolEmbedder(source, count, gpu=on_gpu))
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

        given: record id -> reasons, for route ``given``. written: record id -> trace to embed with instead of the student's
        own. answers: record id -> the right answer, to count right traces.
        """
        files = EmbeddingFiles(self.directory, suffix)
        self._share_pools(files)
        first = self._queries is None
        if self._queries is None:
            self._queries = QueryEmbeddings(self.files, self.workers())
        ids = {
            (task, query.qid): record_id(self.split, task.dataset, task.task_id, query.qid)
            for task, file in self.files.items()
            for query in file.queries
        }
        with Meter(name, len(ids), unit="queries", quiet=self.quiet) as meter:
            of_task = self._queries.embed(
                route,
                given={place: given.get(identifier, False) for place, identifier in ids.items()} if given is not None else None,
                written={place: written.get(identifier, "") for place, identifier in ids.items()}
                if written is not None
                else None,
                advance=meter.advance,
            )
        if first:
            self._say_queries_left_out(self._queries.left_out)
        every: dict[str, QueryEmbedding] = {}
        accuracy: dict[DatasetTask, float | None] = {}
        for task, (found, _) in of_task.items():
            save_queries(found, self.files[task], files.queries(task, self.split))
            named = {ids[task, query.qid]: one for query, one in zip(self.files[task].queries, found, strict=True)}
            every |= named
            accuracy[task] = _accuracy(named, answers) if answers else None
        scores = self._scores(files)
        self._write_queries(suffix, every)
        return Result(name, [_task_result(task, scores, of_task[task][1], accuracy[task]) for task in self.tasks]), every

    def _write_queries(self, suffix: str, every: Mapping[str, QueryEmbedding]) -> None:
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
        device = search_device(self.config.device)
        for scores, _ in score_directory(files, self.layout, split=self.split, pools=pools, device=device):  # type: ignore[arg-type]
            found += scores
        files.tables.mkdir(parents=True, exist_ok=True)
        (files.tables / f"eval_results_{self.split}.tsv").write_text(table(found), newline="", encoding="utf-8")
        return found

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


def _accuracy(found: Mapping[str, QueryEmbedding], answers: Mapping[str, str]) -> float | None:
    asked = [identifier for identifier in found if identifier in answers]
    if not asked:
        return None
    return float(np.mean([found[i].trace.strip().endswith(answers[i].strip()) for i in asked]))


def _task_result(task: DatasetTask, scores: Sequence[Score], costs: QueryCosts, accuracy: float | None) -> TaskResult:
    k = headline_k(task)
    values = {score.pool: score.value for score in scores if score.task == task and score.k == k}
    return TaskResult(task.name, k, values["single"], values.get("union"), costs, accuracy)
