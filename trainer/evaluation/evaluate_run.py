"""The whole table of a run: every variant, and its controls on the same weights.

base                     the untrained model, if `evaluation.base`
trace, direct, …         each variant with its own routes
trace, routed …          TRACE's weights with other routes: by modality, and at random at the same think rate
trace, teacher's traces  TRACE's weights given the teacher's traces, if `evaluation.teacher_trace_dataset` names them

OUT/eval/eval.log tells what happened and when, and what ended it; OUT/eval/embed-N.log is that of Ray actor N.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.files.durable import replace_text
from pipeline.files.run_log import log_failure, run_log
from schemas.errors import InputError
from schemas.training import TrainConfig, Variant
from trainer.evaluation.controls import modality_routes, random_routes, teacher_traces
from trainer.evaluation.evaluate import ROUTES, Evaluation
from trainer.evaluation.results import Result, as_json
from trainer.model.location import is_checkpoint

logger = logging.getLogger(__name__)


def results_file(config: TrainConfig) -> Path:
    """Where `evaluate_run` writes its results as JSON."""
    return config.out / "eval" / f"results_{config.evaluation.split}.json"


def evaluate_run(
    config: TrainConfig,
    *,
    model: Path | None = None,
    quiet: bool = False,
    notice: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Scores the variants in `config.out` as UniIR does, in the order of the module's table.

    config: a run's settings (`trainer.load_settings`).
    model: a checkpoint's directory to score instead of a run, under the name in `config.variants`.
    notice: called with what a reader of the table must know: candidates and queries left out, queries without a positive. They
    are logged too.

    Writes embeddings, run files and tables in UniIR's layout into ``config.out/eval``, and `results_file`. Embeddings that the
    same weights, pools and settings made before are reused. Raises InputError for a variant that is not finished, and for
    traces of a dataset that was built on another split.
    """
    with run_log(config.out / "eval" / "eval.log"), log_failure(logger, "evaluation"):
        logger.info("%s of %s on %s queries", ", ".join(config.variants), model or config.out, config.evaluation.split)
        results, notices = _evaluate_models(config, model, quiet=quiet)
        replace_text(results_file(config), as_json(results) + "\n")
        for text in notices:
            logger.warning("%s", text)
            notice(text)
        logger.info("results in %s", results_file(config))
    return results


def _evaluate_models(config: TrainConfig, model: Path | None, *, quiet: bool) -> tuple[list[Result], list[str]]:
    directory = config.out / "eval"
    written, answers = None, None
    if config.evaluation.teacher_trace_dataset is not None:
        written, answers = teacher_traces(config.evaluation.teacher_trace_dataset, config.evaluation.split)
    results: list[Result] = []
    notices: list[str] = []  # about pools and queries: the same for every model
    if config.evaluation.base:
        with Evaluation(config, None, directory, quiet=quiet) as evaluation:
            evaluation.embed_pools("base")
            results.append(evaluation.run("base", "base", "always-direct")[0])
            notices = evaluation.notices
    for variant in config.variants:
        with Evaluation(config, _finished_model(config, variant, model), directory, quiet=quiet) as evaluation:
            evaluation.embed_pools(variant)
            results += _evaluate_variant(evaluation, variant, written, answers)
            notices = evaluation.notices
    return results, notices


def _evaluate_variant(
    evaluation: Evaluation, variant: Variant, written: dict[str, str] | None, answers: dict[str, str] | None
) -> list[Result]:
    result, embedded = evaluation.run(variant, variant, ROUTES[variant], answers=answers)
    results = [result]
    if variant != "trace":
        return results
    at_random = random_routes(list(embedded), result.think_rate, evaluation.config.seed)
    for name, routes in (("by modality", modality_routes(evaluation)), ("at random", at_random)):
        suffix = f"trace-{name.replace(' ', '-')}"
        results.append(evaluation.run(f"trace, routed {name}", suffix, "given", given=routes, answers=answers)[0])
    if written is not None:
        results.append(evaluation.run("trace, teacher's traces", "trace-given", "given", written=written)[0])
    return results


def _finished_model(config: TrainConfig, variant: Variant, model: Path | None) -> Path:
    if model is not None:
        if not is_checkpoint(model):
            raise InputError(f"{model} holds no embedder", "name a checkpoint's directory")
        return model
    directory = config.out / variant / "model"
    if not (directory / "finished.json").is_file():
        raise InputError(f"{directory} is missing or not finished", f"run `mbeir-cot train CONFIG --out {config.out}` first")
    return directory
