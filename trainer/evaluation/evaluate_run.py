"""A whole table: every variant of a run, and what each is compared with on the same weights.

base                     the untrained model, where `evaluation.base`
trace, direct, …         each variant with its own routes
trace, routed …          TRACE's weights with other routes: by modality, and at random at the same think rate
trace, teacher's traces  TRACE's weights after the teacher's traces, where `evaluation.teacher_trace_dataset` names them
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.files.durable import replace_text
from schemas.errors import InputError
from schemas.training import TrainConfig, Variant
from trainer.evaluation.controls import modality_routes, random_routes, teacher_traces
from trainer.evaluation.evaluate import ROUTES, Evaluation
from trainer.evaluation.results import Result, as_json
from trainer.model.location import is_checkpoint

_LOG: Final = logging.getLogger(__name__)


def results_file(config: TrainConfig) -> Path:
    """Where `evaluate_run` writes its results as JSON."""
    return config.out / "eval" / f"results_{config.evaluation.split}.json"


def evaluate_run(
    config: TrainConfig,
    *,
    model: Path | None = None,
    quiet: bool = False,
    notice: Callable[[str], None] = _LOG.warning,
) -> list[Result]:
    """Scores what was trained into `config.out` as UniIR does; in the order of the module's table.

    config: a run's settings (`trainer.load_settings`).
    model: a checkpoint's directory that is no run, to score instead, under the name of `config.variants`.
    notice: told what a reader of the table must know: candidates left out, queries without a positive.

    Writes embeddings, run files and tables in UniIR's layout into ``config.out/eval``, and `results_file`. Embeddings that the
    same weights, pools and settings have made before are kept. Raises InputError for a variant that is not finished, and for
    traces of a dataset that was built on another split.
    """
    directory = config.out / "eval"
    written, answers = None, None
    if config.evaluation.teacher_trace_dataset is not None:
        written, answers = teacher_traces(config.evaluation.teacher_trace_dataset, config.evaluation.split)
    results: list[Result] = []
    notices: list[str] = []  # of the pools: the same for every model
    if config.evaluation.base:
        with Evaluation(config, None, directory, quiet=quiet) as evaluation:
            evaluation.pools("base")
            results.append(evaluation.run("base", "base", "always-direct")[0])
            notices = evaluation.notices
    for variant in config.variants:
        with Evaluation(config, _finished(config, variant, model), directory, quiet=quiet) as evaluation:
            evaluation.pools(variant)
            results += _of_variant(evaluation, variant, written, answers)
            notices = evaluation.notices
    replace_text(results_file(config), as_json(results) + "\n")
    for text in notices:
        notice(text)
    return results


def _of_variant(
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


def _finished(config: TrainConfig, variant: Variant, model: Path | None) -> Path:
    if model is not None:
        if not is_checkpoint(model):
            raise InputError(f"{model} holds no embedder", "name a checkpoint's directory")
        return model
    found = config.out / variant / "model"
    if not (found / "finished.json").is_file():
        raise InputError(f"{found} is not there or not finished", f"run `mbeir-cot train CONFIG --out {config.out}` first")
    return found
