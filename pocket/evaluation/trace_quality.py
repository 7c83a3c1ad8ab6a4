"""An evaluation's hit rates by what the world's truth says: kinds of reasoning, and traces that are right or wrong.

The groups have the columns of `trainer.evaluation.diagnostics`, which needs no truth. Several runs (seeds) are pooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.mbeir.layout import Layout
from pocket.evaluation.build_quality import is_right
from pocket.evaluation.skills import auc
from pocket.world.builder import ABOUT_ENTITIES
from pocket.world.ground_truth import QueryTruth, Unseen, load_truth
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, EvaluationSplit
from schemas.record import record_id
from trainer.embedding.files import EmbeddingFiles
from trainer.evaluation.diagnostics import Group, PoolRanks, Ranks, answer_of, make_group
from trainer.evaluation.evaluate_run import SWAP_NONE
from trainer.evaluation.query_log import queries_file, read_query_log
from trainer.evaluation.run_files import Ranked, read_ranks

_UNSEEN: Final[dict[Unseen, str]] = {"": "known entity", "question": "unseen question", "entity": "unseen entity"}


class KnownQuery(NamedTuple):
    """A query of an evaluation. right: whether its own trace ends in a right answer, by the truth; None without a trace."""

    why: ReasoningKind
    unseen: Unseen
    reasoned: bool
    right: bool | None
    confidence: float | None
    about_entity: bool


class TruthGroups(NamedTuple):
    """by_kind: by the kind of reasoning that a query needs. by_trace: the same, by what became of its own trace. by_unseen:
    questions about entities (OVEN, InfoSeek, WebQA), by what in them no training query has.

    confidence_auc: how well the confidence of a trace tells right ones from wrong ones; NaN where all are alike. routes_right:
    share of queries that reasoned if, and only if, they need it. traces_right: share of the own traces; NaN without any.
    """

    by_kind: tuple[Group, ...]
    by_trace: tuple[Group, ...]
    by_unseen: tuple[Group, ...]
    confidence_auc: float
    routes_right: float
    traces_right: float


def group_by_truth(runs: Sequence[Path], world: Path, split: EvaluationSplit = "test", suffix: str = "trace") -> TruthGroups:
    """Of runs that `mbeir-cot eval` scored on this world. suffix: which of its rows, as its files are named."""
    truths = {
        record_id(split, *_named(truth), truth.qid): truth
        for truth in load_truth(world / "truth").queries
        if truth.split == split
    }
    queries: dict[str, KnownQuery] = {}
    for number, run in enumerate(runs):
        queries |= {_of_run(identifier, number): query for identifier, query in _read_queries(run, truths, split, suffix)}
    layout = Layout.open(world / "mbeir")
    own, direct, bypass = (_pooled(runs, layout, split, name) for name in (suffix, "direct", SWAP_NONE))
    if own is None:
        raise InputError(f"{runs[0]} has no run files of {suffix} on {split}", f"run `mbeir-cot eval {runs[0]}` first")
    reasoned = {identifier: query.reasoned for identifier, query in queries.items()}

    def group(name: str, ids: list[str], *, without: bool) -> list[Group]:
        return [make_group(name, ids, reasoned, own, direct, bypass=bypass if without else None)] if ids else []

    by_kind: list[Group] = []
    by_trace: list[Group] = []
    for name, kinds in (
        ("needs none", [ReasoningKind.NONE]),
        ("needs reasoning", [kind for kind in ReasoningKind if kind.needs_reasoning]),
        *((kind.value, [kind]) for kind in ReasoningKind if kind.needs_reasoning),
    ):
        of_kind = {identifier: query for identifier, query in queries.items() if query.why in kinds}
        by_kind += group(name, list(of_kind), without=False)
        for said, right in (("right trace", True), ("wrong trace", False), ("no trace", None)):
            ids = [identifier for identifier, query in of_kind.items() if query.right is right]
            by_trace += group(f"{name}: {said}", ids, without=right is not None)
    by_unseen: list[Group] = []
    for unseen, name in _UNSEEN.items():
        of_entities = {i: query for i, query in queries.items() if query.unseen == unseen and query.about_entity}
        by_unseen += group(name, list(of_entities), without=False)
        thinking = [i for i, query in of_entities.items() if query.why.needs_reasoning]
        by_unseen += group(f"{name}, needs reasoning", thinking, without=False)
    judged = [one for one in queries.values() if one.right is not None and one.confidence is not None]
    return TruthGroups(
        tuple(by_kind),
        tuple(by_trace),
        tuple(by_unseen),
        auc([one.confidence or 0.0 for one in judged], [bool(one.right) for one in judged]),
        _share([one.reasoned == one.why.needs_reasoning for one in queries.values()]),
        _share([one.right for one in queries.values() if one.right is not None]),
    )


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _named(truth: QueryTruth) -> tuple[str, int]:
    dataset, _, number = truth.dataset_task.rpartition("_task")
    return dataset, int(number)


def _of_run(identifier: str, number: int) -> str:
    """The id of a query in one of several runs."""
    return f"{identifier}#{number}"


def _read_queries(
    run: Path, truths: Mapping[str, QueryTruth], split: EvaluationSplit, suffix: str
) -> Iterator[tuple[str, KnownQuery]]:
    file = queries_file(run / "eval", suffix, split)
    if not file.is_file():
        raise InputError(f"{file} is missing", f"run `mbeir-cot eval {run}` first")
    for entry in read_query_log(file):
        truth = truths.get(entry["id"])
        if truth is None:
            raise InputError(
                f"{file}: the world's truth does not know {entry['id']}", "name the world that the run was scored on"
            )
        right = is_right(answer_of(entry["trace"]), truth) if entry["reasoned"] else None
        yield (
            entry["id"],
            KnownQuery(
                truth.why,
                truth.unseen,
                entry["reasoned"],
                right,
                entry.get("confidence"),
                about_entity=_named(truth)[0] in ABOUT_ENTITIES,
            ),
        )


def _pooled(runs: Sequence[Path], layout: Layout, split: EvaluationSplit, suffix: str) -> PoolRanks | None:
    """None unless all runs have the row."""

    def ranks(pool: str) -> Ranks:
        pooled: dict[str, Ranked] = {}
        for number, run in enumerate(runs):
            files = EmbeddingFiles(run / "eval", suffix)
            of_run = read_ranks(files, layout, DATASET_TASKS, "union" if pool == "union" else "single", split)
            if not of_run:
                return {}
            pooled |= {_of_run(identifier, number): ranked for identifier, ranked in of_run.items()}
        return pooled

    local = ranks("single")
    return PoolRanks(local=local, union=ranks("union") or None) if local else None
