"""The suite's results for one embedder: every chosen task scored, put together by columns, with seen queries apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files.durable import replace_text
from schemas.errors import ConfigError
from schemas.training import TrainConfig
from trainer.zero_shot.columns import columns
from trainer.zero_shot.contamination import TrainingIndex
from trainer.zero_shot.inputs import SuiteStore
from trainer.zero_shot.results import SuiteResults, results_file
from trainer.zero_shot.run import SuiteRun, wanted
from trainer.zero_shot.suite import DATASETS
from trainer.zero_shot.tasks import Task


def choose_tasks(root: Path, names: Sequence[str] = ()) -> list[Task]:
    """The named tasks below the root, by task or data set; all for no names. Raises ConfigError if there are none."""
    tasks = wanted([task for dataset in DATASETS for task in dataset.open(root)], names)
    if not tasks:
        raise ConfigError(
            f"nothing to score below {root}", "`mbeir-cot zero-shot list ROOT` names the files that are looked for"
        )
    return tasks


def evaluate_suite(
    config: TrainConfig,
    model: Path,
    *,
    root: Path,
    out: Path,
    names: Sequence[str] = (),
    route: str = "adaptive",
    variant: str = "trace",
    seen: bool = True,
    near: bool = False,
    image_roots: Sequence[Path] = (),
) -> SuiteResults:
    """Embeds and scores tasks of the suite, and writes `results_file`.

    Args:
        config: a run's settings (`trainer.load_settings`).
        model: the finished embedder's directory.
        root: the directory with the data sets' folders.
        out: gets vectors, each query's values and the results; tasks that are finished there are kept.
        names: tasks or data sets; all that are there if none is named.
        route: a key of `trainer.zero_shot.run.ROUTES`.
        variant: only named in the results.
        seen: report queries apart that the settings' dataset, if they name one, has shown in training.
        near: also mark near-duplicate pictures, which opens every training picture; those that cannot be read are counted.
        image_roots: further directories that links below `root` may lead into.
    """
    tasks = choose_tasks(root, names)
    index = TrainingIndex.of(config, near=near) if seen and config.data.dataset else None
    store = SuiteStore(root, image_roots) if near else None
    marks = {task.name: index.marks(task, store) for task in tasks} if index is not None else None
    with SuiteRun(config, model, root=root, out=out, image_roots=image_roots) as suite:
        scored = [suite.score(task, route) for task in tasks]
    pictures = index.read if index is not None else {}
    results = SuiteResults(route=route, variant=variant, columns=columns(scored, marks), pictures=pictures)
    replace_text(results_file(out), results.model_dump_json(indent=1) + "\n")
    return results
