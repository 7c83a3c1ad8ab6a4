"""The report page of a run: learning curves, the table with its controls, and the queries on which TRACE wins and loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config import load_config
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.dataset.training_store import training_store
from pipeline.files.state import read_json, read_lines, read_model
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.thumbnails import Thumbnails
from pipeline.report.chart_drawing import grouped, lines, stacked
from pipeline.report.page import Chart, Example, Fact, Grid, Page
from pipeline.traces.families import FAMILIES
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, EVALUATION_SPLITS, Candidate, DatasetTask, EvaluationSplit
from schemas.training import TrainConfig
from trainer.embedding.files import EmbeddingFiles
from trainer.evaluation.diagnostics import Diagnostics
from trainer.evaluation.evaluate_run import diagnostics_file
from trainer.evaluation.hit_rates import headline_k
from trainer.evaluation.query_log import queries_file, read_query_log
from trainer.evaluation.report_tables import make_costs, make_diagnostics, make_table, mean_rate
from trainer.evaluation.run_files import read_ranks

_SMOOTH: Final = 10
_MISSED: Final = 10_000
_OUTCOMES: Final = {(True, True): "both hit", (True, False): "win", (False, True): "loss", (False, False): "both miss"}
"""(TRACE hits, direct hits) -> the outcome for TRACE."""

Entry = dict[str, Any]


def run_page(run: Path, *, examples: int = 300, image_roots: Sequence[Path] = (), more: Sequence[Grid] = ()) -> Page:
    """The page of a run. `more`: further tables. Raises InputError unless it was evaluated."""
    config = load_config(run / "train.json", TrainConfig).model_copy(update={"out": run})
    data = config.data.model_copy(update={"image_roots": (*config.data.image_roots, *image_roots)})
    split = _evaluated_split(run, config.evaluation.split)
    evaluation = config.evaluation.model_copy(update={"split": split})
    config = config.model_copy(update={"data": data, "evaluation": evaluation})
    file = run / "eval" / f"results_{split}.json"
    results = read_json(file, f"run `mbeir-cot eval {run}` again")
    synthetic = (Layout.open(config.data.mbeir).root.parent / "truth").is_dir()
    compared = _compare_ranks(config, split)
    pictures = Thumbnails(training_store(config))
    return Page(
        title=f"TRACE: training report of {run.name}",
        banner="SYNTHETIC: trained and scored in an invented miniature world (pocket)." if synthetic else "",
        lead=f"{config.model.base} trained on {config.data.dataset}: {', '.join(config.variants)}; scored on {split}.",
        facts=_make_facts(results),
        charts=[*_chart_curves(run, config), _chart_families(results), *_chart_difficulty(config, compared)],
        grids=[make_table(results), make_costs(results), *make_diagnostics(_load_diagnostics(config)), *more],
        examples=_choose_examples(config, compared, pictures, examples),
        examples_note="First the queries where TRACE and the direct embedding differ in hit@k, in the local pool; then some "
        "where they agree. The rank is that of the best positive.",
        pictures=pictures.found,
    )


def _make_facts(results: Sequence[Entry]) -> list[Fact]:
    facts = [
        Fact(f"hit@k, {one['name']}", f"{100 * mean_rate(one):.1f}", "mean over dataset-tasks, local pools")
        for one in results
        if one["name"] in ("base", "direct", "always-reason", "trace")
    ]
    trace = next((one for one in results if one["name"] == "trace"), None)
    if trace is not None:
        queries = sum(task["costs"]["queries"] for task in trace["tasks"])
        reasoned = sum(task["costs"]["reasoned"] for task in trace["tasks"])
        facts.append(Fact("think rate of TRACE", f"{reasoned / max(1, queries):.1%}", f"{reasoned:,} of {queries:,} queries"))
    return facts


def _evaluated_split(run: Path, wanted: EvaluationSplit) -> EvaluationSplit:
    """The settings' split, or the one that was evaluated with `--set evaluation.split=…`. Raises InputError for none."""
    for split in (wanted, *EVALUATION_SPLITS):
        if (run / "eval" / f"results_{split}.json").is_file():
            return split
    raise InputError(f"{run} was not evaluated on {wanted}: no results_{wanted}.json", f"run `mbeir-cot eval {run}` first")


def _chart_curves(run: Path, config: TrainConfig) -> list[Chart]:
    series: dict[str, dict[str, tuple[list[float], list[float]]]] = {"retrieval": {}, "generation": {}}
    for variant in config.variants:
        entries = read_lines(run / variant / "metrics.jsonl")
        for name, curves in series.items():
            curves[variant] = ([entry["step"] for entry in entries], _smooth([entry[name] for entry in entries]))
    notes = {
        "retrieval": f"InfoNCE over the batch, mean of {_SMOOTH} steps.",
        "generation": f"Cross-entropy of traces and routes, mean of {_SMOOTH} steps, logarithmic.",
    }
    return [
        Chart(f"Learning curve: {name}", notes[name], lines(curves, x="step", y="loss", log=name == "generation"))
        for name, curves in series.items()
    ]


def _smooth(values: Sequence[float]) -> list[float]:
    return [round(float(np.mean(values[max(0, i - _SMOOTH + 1) : i + 1])), 5) for i in range(len(values))]


def _chart_families(results: Sequence[Entry]) -> Chart:
    families = list(FAMILIES)
    series = {one["name"]: [round(100 * mean_rate(one, family), 2) for family in families] for one in results}
    return Chart(
        "hit@k by task family",
        "Unweighted means over the dataset-tasks of a family, local pools.",
        grouped(families, series, axis="hit@k"),
        wide=True,
    )


def _load_diagnostics(config: TrainConfig) -> Diagnostics:
    file = diagnostics_file(config)
    if not file.is_file():
        return Diagnostics()
    return read_model(file, Diagnostics, f"run `mbeir-cot eval {config.out}` again")


def _compare_ranks(config: TrainConfig, split: EvaluationSplit) -> list[Entry]:
    """The queries of `trace`, each with its rank in it and in `direct`; empty if one of the two was not trained."""
    logs = {name: queries_file(config.out / "eval", name, split) for name in ("trace", "direct")}
    if not all(log.is_file() for log in logs.values()):
        return []
    entries = {name: read_query_log(log) for name, log in logs.items()}
    layout = Layout.open(config.data.mbeir)
    for key, name in (("rank", "trace"), ("direct_rank", "direct")):
        ranks = read_ranks(EmbeddingFiles(config.out / "eval", name), layout, DATASET_TASKS, "single", split)
        for entry in entries["trace"]:
            ranked = ranks.get(entry["id"])
            entry[key] = ranked.rank if ranked is not None and ranked.rank is not None else _MISSED
    return entries["trace"]


def _chart_difficulty(config: TrainConfig, entries: Sequence[Entry]) -> list[Chart]:
    """How often TRACE reasons, by the teacher's assessment of the query."""
    if (
        not entries
        or config.evaluation.teacher_trace_dataset is None
        or not Path(config.evaluation.teacher_trace_dataset).is_dir()
    ):
        return []
    assessed = BuiltDataset.open(Path(config.evaluation.teacher_trace_dataset)).table("data", ["id", "assessment"])
    by_id = dict(zip(assessed["id"].to_pylist(), assessed["assessment"].to_pylist(), strict=True))
    bins: dict[str, list[bool]] = defaultdict(list)
    for entry in entries:
        p = by_id.get(entry["id"])
        if p is not None:
            low = min(int(p * 5), 4) / 5
            bins[f"{low:.1f} to {low + 0.2:.1f}"].append(entry["reasoned"])
    labels = sorted(bins)
    parts = {
        "reasons": ([sum(bins[label]) for label in labels], "#4477aa"),
        "bypasses": ([len(bins[label]) - sum(bins[label]) for label in labels], "#44aa99"),
    }
    return [
        Chart(
            "Think rate against difficulty",
            "TRACE's learned routes, by the teacher's P(complex) for the same query, which TRACE does not see.",
            stacked([f"P(complex) {label}" for label in labels], parts),
            wide=True,
        )
    ]


def _choose_examples(config: TrainConfig, entries: Sequence[Entry], pictures: Thumbnails, count: int) -> list[Example]:
    changed: list[Entry] = []
    same: list[Entry] = []
    for entry in entries:
        k = headline_k(DatasetTask.parse(entry["task"]))
        ours, theirs = entry["rank"] <= k, entry["direct_rank"] <= k
        entry["outcome"] = (
            "win" if ours and not theirs else "loss" if theirs and not ours else "both hit" if ours else "both miss"
        )
        (changed if ours != theirs else same).append(entry)
    stride = max(1, len(same) // max(1, count - len(changed)))
    chosen = [*changed, *same[::stride]][:count]
    positives = _fetch_positives(config, chosen)
    return [_make_example(entry, positives.get(entry["id"]), pictures) for entry in chosen]


def _make_example(entry: Entry, positive: Candidate | None, pictures: Thumbnails) -> Example:
    ended = "" if entry["ended"] else ", cut"
    return Example(
        id=entry["id"],
        tags={
            "outcome": entry["outcome"],
            "dataset": entry["task"].replace("_task", " task "),
            "route": "reasoning" if entry["reasoned"] else "bypass",
        },
        instruction=entry["instruction"],
        text=entry["text"] or "",
        picture=pictures.add(entry["image"]),
        lines=[("TRACE wrote", entry["trace"].strip())] if entry["trace"] else [("bypass", "embedded as it is")],
        badges=[
            f"rank {_format_rank(entry['rank'])}, direct {_format_rank(entry['direct_rank'])}",
            f"P(direct) {entry['p_direct']:.3f}",
            f"{entry['tokens']} tokens{ended}",
        ],
        positive_text=(positive.txt or "") if positive is not None else "",
        positive_picture=pictures.add(positive.img_path) if positive is not None else "",
    )


def _format_rank(rank: int) -> str:
    return str(rank) if rank < _MISSED else "beyond the list"


def _fetch_positives(config: TrainConfig, entries: Sequence[Entry]) -> dict[str, Candidate]:
    """Record id -> the first positive that is in the local pool."""
    layout, split = Layout.open(config.data.mbeir), config.evaluation.split
    by_task: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_task[entry["task"]].append(entry)
    positives: dict[str, Candidate] = {}
    for name, part in by_task.items():
        path = layout.local_pool(DatasetTask.parse(name), split)
        if path is None:
            continue
        with CandidatePool.open(path, config.data.candidate_cache) as pool:
            for entry in part:
                did = next((did for did in entry["positives"] if did in pool), None)
                if did is not None:
                    positives[entry["id"]] = pool.fetch([did])[0]
    return positives
