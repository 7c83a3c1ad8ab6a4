"""The whole table of a run: every variant, and its controls on the same weights.

base                     the untrained model, if `evaluation.base`
base, answers first      the same in its own words: it answers, then embeds, if `evaluation.base_answers`
trace, direct, …         each variant with its own routes
trace, routed …          TRACE's weights with other routes: by modality, and at random at the same think rate
trace, fallback …        TRACE with other values of `adaptive.fallback` (`evaluation.fallbacks`); without it, if it is set
trace, teacher's traces  TRACE's weights given the teacher's traces, if `evaluation.teacher_trace_dataset` names them

OUT/eval/eval.log tells what happened and when, and what ended it; OUT/eval/embed-N.log is that of Ray actor N.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.files.durable import replace_text
from pipeline.files.run_log import log_failure, run_log
from pipeline.mbeir.layout import Layout
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS
from schemas.training import TrainConfig, Variant
from trainer.embedding.files import EmbeddingFiles
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.evaluation.base_answers import answer_first, base_settings
from trainer.evaluation.controls import TeacherTraces, modality_routes, random_routes, teacher_traces
from trainer.evaluation.diagnostics import (
    Diagnostics,
    PoolRanks,
    Swap,
    compare_swap,
    exchange_traces,
    group_by_agreement,
    group_by_confidence,
    group_by_difficulty,
    shuffle_words,
)
from trainer.evaluation.evaluate import ROUTES, Evaluation
from trainer.evaluation.results import Result, as_json
from trainer.evaluation.run_files import read_ranks
from trainer.model.location import is_checkpoint

logger = logging.getLogger(__name__)

SWAP_NONE: Final = "trace-swap-none"
"""The files of the swap test's bypass embeddings."""


def results_file(config: TrainConfig) -> Path:
    """Where `evaluate_run` writes its results as JSON."""
    return config.out / "eval" / f"results_{config.evaluation.split}.json"


def diagnostics_file(config: TrainConfig) -> Path:
    """Where `evaluate_run` writes a run's `Diagnostics`, if TRACE is among its variants."""
    return config.out / "eval" / f"diagnostics_{config.evaluation.split}.json"


def evaluate_run(
    config: TrainConfig,
    *,
    model: Path | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Scores the variants in `config.out` as UniIR does, in the order of the module's table.

    config: a run's settings (`trainer.load_settings`).
    model: a checkpoint's directory to score instead of a run, under the name in `config.variants`.
    notice: called with what a reader of the table must know: candidates and queries left out, queries without a positive. They
    are logged too.

    Writes embeddings, run files and tables in UniIR's layout into ``config.out/eval``, `results_file` and, with TRACE among the
    variants, `diagnostics_file`. Embeddings that the same weights, pools and settings made before are reused. Raises InputError
    for a variant that is not finished, and for traces of a dataset that was built on another split.
    """
    with run_log(config.out / "eval" / "eval.log"), log_failure(logger, "evaluation"):
        logger.info("%s of %s on %s queries", ", ".join(config.variants), model or config.out, config.evaluation.split)
        results, notices = _evaluate_models(config, model)
        replace_text(results_file(config), as_json(results, config.data.hold_out) + "\n")
        for text in notices:
            logger.warning("%s", text)
            notice(text)
        logger.info("results in %s", results_file(config))
    return results


def _evaluate_models(config: TrainConfig, model: Path | None) -> tuple[list[Result], list[str]]:
    directory = config.out / "eval"
    teacher = None
    if config.evaluation.teacher_trace_dataset is not None:
        teacher = teacher_traces(config.evaluation.teacher_trace_dataset, config.evaluation.split)
    embedded: dict[str, QueryEmbedding] = {}
    swaps: tuple[Swap, ...] = ()
    results: list[Result] = []
    notices: list[str] = []  # about pools and queries: the same for every model
    if config.evaluation.base:
        with Evaluation(config, None, directory) as evaluation:
            evaluation.embed_pools("base")
            results.append(evaluation.run("base", "base", "always-direct")[0])
            notices = evaluation.notices
    if config.evaluation.base_answers:
        with Evaluation(base_settings(config), None, directory) as evaluation:
            results.append(answer_first(evaluation))
            notices = evaluation.notices
    for variant in config.variants:
        with Evaluation(config, _finished_model(config, variant, model), directory) as evaluation:
            evaluation.embed_pools(variant)
            evaluated = _evaluate_variant(evaluation, variant, teacher)
            results += evaluated.results
            notices = evaluation.notices
            if variant == "trace":
                embedded = evaluated.embedded
                swaps = _run_swap_test(evaluation, embedded)
    diagnostics_file(config).unlink(missing_ok=True)  # an earlier evaluation's
    if embedded:
        replace_text(diagnostics_file(config), _diagnose(config, embedded, teacher, swaps).model_dump_json(indent=1) + "\n")
    return results, notices


class _VariantResults(NamedTuple):
    results: list[Result]
    embedded: dict[str, QueryEmbedding]
    """By record id, with the variant's own routes and traces."""


def _evaluate_variant(evaluation: Evaluation, variant: Variant, teacher: TeacherTraces | None) -> _VariantResults:
    answers = teacher.answers if teacher is not None and variant != "direct" else None  # which writes none
    fallback = evaluation.config.adaptive.fallback
    result, embedded = evaluation.run(variant, variant, ROUTES[variant], answers=answers, fallback=fallback)
    results = [result]
    if variant != "trace":
        return _VariantResults(results, embedded)
    at_random = random_routes(list(embedded), result.think_rate, evaluation.config.seed)
    for name, routes in (("by modality", modality_routes(evaluation)), ("at random", at_random)):
        suffix = f"trace-{name.replace(' ', '-')}"
        routed = evaluation.run(f"trace, routed {name}", suffix, "given", given=routes, answers=answers, fallback=fallback)
        results.append(routed[0])
    own = {identifier: one.reasoned for identifier, one in embedded.items()}
    for value in evaluation.config.evaluation.fallbacks:
        suffix = f"trace-fallback{abs(value):g}"
        named = f"trace, fallback below {value:g}"
        results.append(evaluation.run(named, suffix, "given", given=own, answers=answers, fallback=value)[0])
    if fallback is not None:
        results.append(evaluation.run("trace, without fallback", "trace-no-fallback", "given", given=own, answers=answers)[0])
    if teacher is not None:
        results.append(evaluation.run("trace, teacher's traces", "trace-given", "given", written=teacher.traces)[0])
    return _VariantResults(results, embedded)


def _run_swap_test(evaluation: Evaluation, embedded: Mapping[str, QueryEmbedding]) -> tuple[Swap, ...]:
    """The queries that reasoned, embedded after other traces. Empty if the settings do not ask for it, or none reasoned."""
    own_traces = {identifier: one.trace for identifier, one in embedded.items() if one.reasoned and not one.fell_back}
    if not evaluation.config.evaluation.swap_test or not own_traces:
        return ()
    seed = evaluation.config.seed
    vectors = {identifier: embedded[identifier].vector.numpy() for identifier in own_traces}
    own = _load_ranks(evaluation.config, "trace")
    swaps = [compare_swap("own", vectors, vectors, own, own)]
    for name, traces in (
        ("none", dict.fromkeys(own_traces, "")),
        ("another query's", exchange_traces(own_traces, seed)),
        ("shuffled words", shuffle_words(own_traces, seed)),
    ):
        if not traces:  # no dataset-task has two queries that reasoned
            continue
        suffix = f"trace-swap-{name.replace(' ', '-').replace(chr(39), '')}"
        _, swapped = evaluation.run(f"trace, after {name}", suffix, "given", written=traces)
        others = {identifier: swapped[identifier].vector.numpy() for identifier in traces if identifier in swapped}
        swaps.append(compare_swap(name, vectors, others, own, _load_ranks(evaluation.config, suffix)))
    return tuple(swaps)


def _diagnose(
    config: TrainConfig, embedded: Mapping[str, QueryEmbedding], teacher: TeacherTraces | None, swaps: tuple[Swap, ...]
) -> Diagnostics:
    own = _load_ranks(config, "trace")
    direct = _load_ranks(config, "direct") if "direct" in config.variants else None
    confidence = {identifier: one.confidence for identifier, one in embedded.items() if one.confidence is not None}
    bypass = _load_ranks(config, SWAP_NONE) if swaps else None
    by_confidence = group_by_confidence(confidence, own, direct, bypass=bypass)
    if teacher is None:
        return Diagnostics(by_confidence=by_confidence, swap_test=swaps)
    routes = {identifier: query.reasoned for identifier, query in embedded.items()}
    traces = {identifier: query.trace for identifier, query in embedded.items() if query.reasoned}
    return Diagnostics(
        by_difficulty=group_by_difficulty(routes, teacher.complexity, own, direct),
        by_agreement=group_by_agreement(traces, teacher.answers, own, direct),
        by_confidence=by_confidence,
        swap_test=swaps,
    )


def _load_ranks(config: TrainConfig, suffix: str) -> PoolRanks:
    layout, files, split = Layout.open(config.data.mbeir), EmbeddingFiles(config.out / "eval", suffix), config.evaluation.split
    union = read_ranks(files, layout, DATASET_TASKS, "union", split) if config.evaluation.union else None
    return PoolRanks(local=read_ranks(files, layout, DATASET_TASKS, "single", split), union=union)


def _finished_model(config: TrainConfig, variant: Variant, model: Path | None) -> Path:
    if model is not None:
        if not is_checkpoint(model):
            raise InputError(f"{model} holds no embedder", "name a checkpoint's directory")
        return model
    directory = config.out / variant / "model"
    if not (directory / "finished.json").is_file():
        raise InputError(f"{directory} is missing or not finished", f"run `mbeir-cot train CONFIG --out {config.out}` first")
    return directory
