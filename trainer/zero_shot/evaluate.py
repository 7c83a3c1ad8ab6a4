"""The zero-shot suite for a variant of a run: scored, with what its training has seen told apart, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files.durable import replace_text
from schemas.errors import ConfigError
from schemas.training import TrainConfig
from trainer.zero_shot.contamination import TrainingIndex
from trainer.zero_shot.inputs import SuiteStore
from trainer.zero_shot.run import ROUTES, SuiteRun, wanted
from trainer.zero_shot.suite import DATASETS
from trainer.zero_shot.table import SuiteResults, columns


def evaluate_suite(
    config: TrainConfig,
    model: Path | None,
    out: Path,
    *,
    root: Path,
    variant: str = "trace",
    route: str = "adaptive",
    tasks: Sequence[str] = (),
    image_roots: Sequence[Path] = (),
    seen: bool = True,
    near: bool = False,
) -> SuiteResults:
    """Scores the data sets below `root` and writes `out`/results.json. Finished tasks are kept.

    model: the variant's directory. tasks: data sets or tasks [default: all that are there]. seen: tell apart what the config's
    dataset has shown; near: also by near-duplicate pictures. Raises ConfigError for an unknown route, or nothing to score.
    """
    if route not in ROUTES:
        raise ConfigError(f"--route {route}: unknown", " or ".join(ROUTES))
    chosen = wanted([task for dataset in DATASETS for task in dataset.open(root)], tasks)
    if not chosen:
        raise ConfigError(
            f"nothing to score below {root}", "`mbeir-cot zero-shot list ROOT` names the files that are looked for"
        )
    index = TrainingIndex.of(config, near=near) if seen and config.data.dataset else None
    with SuiteRun(config, model, root=root, out=out, image_roots=image_roots) as suite:
        scored = [suite.score(task, route) for task in chosen]
    store = SuiteStore(root, image_roots) if near else None
    marks = {task.name: index.marks(task, store) for task in chosen} if index is not None else None
    results = SuiteResults(route=route, variant=variant, columns=columns(scored, marks))
    replace_text(out / "results.json", results.model_dump_json(indent=1) + "\n")
    return results
