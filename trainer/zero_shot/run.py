"""The suite for one embedder: candidates and queries embedded, scored, kept task by task, put together by columns.

    OUT/pools/DIGEST_cand_pool_embed.npy   candidates; tasks with the same ones share them, parts that are written are kept
    OUT/tasks/NAME/values.npz              each query's value of each metric
    OUT/tasks/NAME/task.json               what made them; how queries were routed; what was left out

A task that is done is not embedded again. What cannot be read is counted, as in `eval`: such a query is a miss, and so is one
whose gallery has such a candidate; such a candidate of a pool cannot be found.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import BaseModel

from pipeline.files.durable import replace_text, sync
from pipeline.files.state import read_json
from pipeline.progress_meter import Meter
from schemas.errors import InputError
from schemas.mbeir import DatasetTask, hash_did
from schemas.os_errors import refused_by_system
from schemas.training import RouteChoice, TrainConfig
from trainer.data.exclusions import Exclusion, load_exclusions
from trainer.embedding.files import DAMAGED, empty_unless_made_by, exclusions_path, load_embeddings
from trainer.embedding.queries import WINDOW, Place, QueryUnit
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.recovered_candidates import embed_whole_pool, readable
from trainer.embedding.vectors import Vectors, normalise
from trainer.embedding.workers import EmbedderSpec, Workers, open_workers
from trainer.model.metadata import fingerprint
from trainer.retrieval.topk import search_device
from trainer.zero_shot.inputs import SuiteStore, TaskPool, digest, student_query
from trainer.zero_shot.scorers import Values
from trainer.zero_shot.scoring import score
from trainer.zero_shot.tasks import Query, Task

ROUTES: Final[dict[str, RouteChoice]] = {"adaptive": "learned", "bypass": "always-direct", "reason": "always-reason"}


class TaskScores(BaseModel):
    """One task as it was scored. ids: of the queries in the order of `values`."""

    task: str
    column: str
    made_by: dict[str, Any]
    ids: list[str]
    reasoned: int
    cut: int
    tokens: int
    unreadable_queries: int
    """They count as misses."""
    unreadable_candidates: int

    @property
    def queries(self) -> int:
        return len(self.ids)


class Scored(NamedTuple):
    """A task's scores with each query's values."""

    about: TaskScores
    values: Values


class SuiteRun:
    """One embedder on tasks of the suite. Gives its workers up when it is closed."""

    def __init__(
        self,
        config: TrainConfig,
        model: Path | None,
        *,
        root: Path,
        out: Path,
        image_roots: Sequence[Path] = (),
    ) -> None:
        """`model`: a finished embedder's directory; None for the untrained base."""
        data = config.data.model_copy(update={"skip_unreadable": True})
        self.config, self.model, self.out = config.model_copy(update={"data": data}), model, out
        self._images = SuiteStore(root, image_roots)
        self._open = ExitStack()
        self._workers: Workers | None = None

    def __enter__(self) -> SuiteRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        self._workers = None

    def score(self, task: Task, route: str = "adaptive") -> Scored:
        """From what is kept, or anew. Raises InputError where nothing of the task can be read."""
        pool = TaskPool(task.name, task.candidates())
        queries = list(task.queries())
        if not queries or not len(pool):
            raise InputError(f"{task.name} has no queries or no candidates", "its file is empty: take it as it is published")
        made_by = self._made_by(pool, queries, route)
        place = self.out / "tasks" / task.name
        if (kept := _kept(place, made_by)) is not None and not self._mended(place, pool):
            most = self.config.data.most_unreadable
            if kept.about.unreadable_candidates <= most * len(pool):  # else they are tried again, and refused
                return kept
        candidates, lost = self._candidates(task, pool)
        embeddings, unread = self._queries(task, queries, ROUTES[route])
        unreadable, values = self._scored(task, queries, embeddings, candidates, lost=lost)
        done = TaskScores(
            task=task.name,
            column=task.column,
            made_by=made_by,
            ids=[one.id for one in queries],
            reasoned=sum(one.reasoned for one in embeddings.values()),
            cut=sum(not one.ended for one in embeddings.values()),
            tokens=sum(one.tokens for one in embeddings.values()),
            unreadable_queries=unreadable,
            unreadable_candidates=len(lost),
        )
        _keep(place, done, values, unread)
        return Scored(about=done, values=values)

    def _made_by(self, pool: TaskPool, queries: Sequence[Query], route: str) -> dict[str, Any]:
        shown = digest([[one.id, student_query(one), one.positives, one.gallery, one.excluded] for one in queries])
        return {
            **self._embedder(),
            "adaptive": self.config.adaptive.model_dump(
                mode="json", exclude={"route", "prefill_rows", "decode_rows"}, exclude_none=True
            ),
            "route": route,
            "candidates": pool.sha256,
            "queries": shown,
        }

    def _embedder(self) -> dict[str, Any]:
        config = self.config
        return {
            "model": fingerprint(self.model) if self.model is not None else config.model.model_dump(mode="json"),
            "seed": config.seed if self.model is None else None,
            "prompts": config.data.prompts,
            "root": str(self._images.root.resolve()),
            "max_candidate_chars": config.data.max_candidate_chars,
        }

    def _mended(self, place: Path, pool: TaskPool) -> bool:
        """Whether something that was left out can be read by now."""
        queries = read_json(place / "unreadable_queries.json")
        candidates = load_exclusions(exclusions_path(self._pool_file(pool)))
        return bool(readable([*(Exclusion(**one) for one in queries), *candidates], self._images))

    def _pool_file(self, pool: TaskPool) -> Path:
        return self.out / "pools" / f"{pool.sha256[:16]}_cand_pool_embed.npy"

    def _candidates(self, task: Task, pool: TaskPool) -> tuple[Vectors, set[int]]:
        """(vectors of all places, zero for those that cannot be read; these places)."""
        pools = self.out / "pools"
        empty_unless_made_by(pools, self._embedder())
        out = self._pool_file(pool)
        with Meter(f"{task.name}: candidates", len(pool), unit="candidates") as meter:
            embed, most = partial(self.workers().embed_ranges, pool), self.config.data.most_unreadable
            left_out = embed_whole_pool(out, embed, pool.ids, self._images, meter.advance, most=most)
        lost = {hash_did(one.name) - 1 for one in left_out}
        read = load_embeddings(out)
        vectors = np.zeros((len(pool), read.vectors.shape[1]), np.float32)
        vectors[np.asarray(read.ids) - 1] = read.read_all()
        return vectors, lost

    def _queries(
        self, task: Task, queries: Sequence[Query], route: RouteChoice
    ) -> tuple[dict[str, QueryEmbedding], dict[Place, Exclusion]]:
        name = DatasetTask(task.name, 0)  # a place is a task and an id; the suite's tasks have no numbers
        parts = [queries[start : start + WINDOW] for start in range(0, len(queries), WINDOW)]
        units = [QueryUnit(tuple((name, one.id) for one in part), tuple(map(student_query, part)), route) for part in parts]
        fallback = self.config.adaptive.fallback
        embeddings: dict[str, QueryEmbedding] = {}
        unread: dict[Place, Exclusion] = {}
        with Meter(f"{task.name}: queries", len(queries), unit="queries") as meter:
            for done in self.workers().embed_queries(units):
                made = {identifier: one.fall_back(fallback) for (_, identifier), one in done.embeddings.items()}
                embeddings |= made
                unread |= done.left_out
                meter.advance(len(done.embeddings) + len(done.left_out))
        return embeddings, unread

    def _scored(
        self,
        task: Task,
        queries: Sequence[Query],
        embeddings: dict[str, QueryEmbedding],
        candidates: Vectors,
        *,
        lost: set[int],
    ) -> tuple[int, Values]:
        """(queries that cannot be read, each query's values)."""
        everyone = list(task.candidates())
        gone = {one.id for at, one in enumerate(everyone) if at in lost}
        kept = [one for one in queries if one.id in embeddings and not gone.intersection(one.gallery)]
        if not kept:
            raise InputError(
                f"{task.name}: none of its {len(queries):,} queries can be read",
                "`mbeir-cot zero-shot check ROOT` lists the images that are missing",
            )
        there = [one for at, one in enumerate(everyone) if at not in lost]
        asking = [replace(one, excluded=tuple(name for name in one.excluded if name not in gone)) for one in kept]
        readable = replace(task, queries=lambda: iter(asking), candidates=lambda: iter(there))
        vectors = normalise(np.stack([embeddings[one.id].vector.numpy() for one in kept]))
        left = candidates[[at for at in range(len(everyone)) if at not in lost]] if lost else candidates
        values = score(readable, vectors, left, device=search_device(self.config.device))
        names = {one.id for one in kept}
        at = np.array([one.id in names for one in queries])
        full = {metric: np.zeros(len(queries), np.float64) for metric in values}
        for metric, each in values.items():
            full[metric][at] = each
        return len(queries) - len(kept), full

    def workers(self) -> Workers:
        """The processes that embed. They load the model on first use."""
        if self._workers is None:
            spec = EmbedderSpec(self.config, self.model, self._images)
            self._workers = self._open.enter_context(open_workers(spec))
        return self._workers


def _kept(place: Path, made_by: dict[str, Any]) -> Scored | None:
    """None for scores that are absent, damaged or made by something else: the task is scored again."""
    try:
        about = TaskScores.model_validate_json((place / "task.json").read_bytes())
        with np.load(place / "values.npz", allow_pickle=False) as values:
            read = {name: np.asarray(values[name], np.float64) for name in values.files}
    except (OSError, *DAMAGED) as error:  # pydantic's are ValueErrors
        if (refused := refused_by_system(error)) is not None:
            raise InputError(f"cannot read the scores {place}: {refused.cause}", refused.remedy) from error
        return None
    same = json.dumps(about.made_by, sort_keys=True) == json.dumps(made_by, sort_keys=True)
    whole = all(len(each) == about.queries for each in read.values())
    return Scored(about=about, values=read) if same and whole else None


def _keep(place: Path, about: TaskScores, values: Values, unread: dict[Place, Exclusion]) -> None:
    """`task.json` last: a task without it is not done."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    np.savez(place / "values.npz", **values)  # type: ignore[arg-type]
    sync(place / "values.npz")
    listed = [one._replace(name=identifier)._asdict() for (_, identifier), one in unread.items()]
    replace_text(place / "unreadable_queries.json", json.dumps(listed, indent=1) + "\n")
    replace_text(place / "task.json", about.model_dump_json(indent=1) + "\n")


def wanted(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Those named, by task (`genecis/focus_object`) or data set (`genecis`), in the suite's order; all for no names."""
    unknown = [name for name in names if not any(_named(task, name) for task in tasks)]
    if unknown:
        there = ", ".join(dict.fromkeys(task.name.partition("/")[0] for task in tasks)) or "none"
        raise InputError(
            f"no task {', '.join(unknown)} below the root", f"there are those of: {there} (`mbeir-cot zero-shot list ROOT`)"
        )
    return [task for task in tasks if task.labelled and (not names or any(_named(task, name) for name in names))]


def _named(task: Task, name: str) -> bool:
    return name in (task.name, task.name.partition("/")[0])
