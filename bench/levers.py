"""What each lever of the trainer is worth: trainings with one setting changed, over seeds, for `direct` and TRACE.

python -m bench.levers build/levers                                        (the short recipe, one seed)
python -m bench.levers build/levers --recipe configs/train-pocket-long.yaml --seeds 3
python -m bench.levers build/levers --verifier configs/pocket.yaml         (starts the teacher; adds its distillation)

Each training is evaluated at once and kept in OUT/LEVER-SEED/VARIANT. A command that was interrupted goes on where it stopped, and one
with more seeds or levers adds to what is there. `--jobs` trains several at a time, each with its share of the cores. `OUT/levers.json` has every figure; the table shows, for each lever, the mean over
seeds with the least and the greatest: hit@k in local pools and in their union, and for TRACE the think rate and, with
`evaluation.swap_test`, the hit@k of its reasoning queries embedded without a trace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from bench.seeds import over_seeds
from pipeline.config import load_config
from schemas.errors import ConfigError, InputError
from schemas.training import TrainConfig, Variant
from trainer.evaluation.report_tables import mean_rate

VARIANTS: Final[tuple[Variant, ...]] = ("direct", "trace")
PLAIN: Final = "recipe"
"""The lever that changes nothing."""
_DONE: Final = "lever.json"


class Trial(NamedTuple):
    """A training's place in the table. steps, batch: the recipe's."""

    recipe: TrainConfig
    steps: int
    plain: Path
    """The run of the recipe with the same seed."""
    variant: Variant
    verifier: Path | None = None
    """A build's config, for the negatives."""

    @property
    def batch(self) -> int:
        return self.recipe.batch.global_batch_size


class Lever(NamedTuple):
    """A row of the table. `changes`: settings beside the recipe's."""

    changes: Callable[[Trial], Sequence[str]]
    variants: tuple[Variant, ...] = VARIANTS
    mines: bool = False
    """Learns from negatives that the recipe's run of the same seed and variant has mined."""
    needs_verifier: bool = False


def _mined_file(trial: Trial) -> Path:
    return trial.plain / trial.variant / "mined" / "mined.parquet"


def _mined(trial: Trial) -> list[str]:
    return ["data.hard_negatives=mined", f"data.mined={_mined_file(trial)}"]


def _two_mined(trial: Trial) -> list[str]:
    return [*_mined(trial), "data.mined_per_query=2"]  # with four, a step takes three times as long


def _distilled(trial: Trial) -> list[str]:
    return [*_two_mined(trial), "loss.distillation_weight=1"]


def _larger(trial: Trial, *more: str) -> list[str]:
    return [f"batch.global_batch_size={2 * trial.batch}", f"optimiser.max_steps={max(1, trial.steps // 2)}", *more]


def _first_stage(trial: Trial) -> list[str]:
    return [f"traces.first_stage_steps={trial.steps // 4}"]


def _all(trial: Trial) -> list[str]:
    """Every lever that keeps batch and steps."""
    direct = ["model.pooling=mean", "model.bidirectional_attention=true"]
    own = direct if trial.variant == "direct" else [*_first_stage(trial), "traces.dropout=0.2"]
    negatives = _distilled(trial) if trial.verifier is not None else _mined(trial)
    return ["loss.learn_temperature=true", "optimiser.kind=muon", *negatives, *own]


LEVERS: Final[dict[str, Lever]] = {
    PLAIN: Lever(lambda trial: []),
    "learnt temperature": Lever(lambda trial: ["loss.learn_temperature=true"]),
    "twice the batch, half the steps": Lever(_larger),
    "the same, rate by root": Lever(
        lambda trial: _larger(trial, "optimiser.lr_scaling=sqrt", f"optimiser.lr_batch_size={trial.batch}")
    ),
    "the same, rate linear": Lever(
        lambda trial: _larger(trial, "optimiser.lr_scaling=linear", f"optimiser.lr_batch_size={trial.batch}")
    ),
    "mined negatives": Lever(_mined, mines=True),
    "two mined negatives": Lever(_two_mined, mines=True),
    "the same, verifier distilled": Lever(_distilled, mines=True, needs_verifier=True),
    "Muon": Lever(lambda trial: ["optimiser.kind=muon"]),
    "mean pooling": Lever(lambda trial: ["model.pooling=mean"], ("direct",)),
    "mean pooling, both ways": Lever(
        lambda trial: ["model.pooling=mean", "model.bidirectional_attention=true"], ("direct",)
    ),
    "two stages": Lever(_first_stage, ("trace",)),
    "trace dropout": Lever(lambda trial: ["traces.dropout=0.2"], ("trace",)),
    "own traces": Lever(
        lambda trial: ["traces.contrastive=own", f"traces.first_refresh={trial.steps // 2}"], ("trace",)
    ),
    "all": Lever(_all, mines=True),
}  # fmt: skip


class Figures(NamedTuple):
    """Of one training. Rates; None where they do not apply."""

    lever: str
    variant: Variant
    seed: int
    local: float
    union: float
    think_rate: float
    without_trace_local: float | None
    without_trace_union: float | None


def run_trial(trial: Trial, name: str, seed: int, recipe: Path, out: Path, *, given: Sequence[str], jobs: int = 1) -> Figures:
    """Trains and evaluates, unless that is done. Raises InputError if the run's directory has other settings."""
    changes = [*given, *LEVERS[name].changes(trial), f"seed={seed}", f"variants=[{trial.variant}]", "evaluation.base=false"]
    run = out / f"{_slug(name)}-{seed}" / trial.variant
    wanted = {"recipe": recipe.read_text(encoding="utf-8"), "changes": changes}
    done = run / _DONE
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != wanted:
        if done.is_file():
            raise InputError(f"{run} holds a run with other settings", "name another directory, or remove that one")
        overrides = [word for change in changes for word in ("--set", change)]
        _command("train", recipe, "--out", run, *overrides, jobs=jobs)
        _command("eval", run, jobs=jobs)
        done.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return read_figures(run, name, trial.variant, seed)


def mine(trial: Trial, *, jobs: int = 1) -> None:
    """Mines the plain run's negatives, unless that is done."""
    if not _mined_file(trial).is_file():
        judge = ("--verifier", trial.verifier) if trial.verifier is not None else ()
        _command("mine", trial.plain, "--variant", trial.variant, *judge, jobs=jobs)


def read_figures(run: Path, lever: str, variant: Variant, seed: int) -> Figures:
    """From the files that `eval` wrote."""
    directory = run / "eval"
    (results,) = directory.glob("results_*.json")
    result = next(one for one in json.loads(results.read_text(encoding="utf-8")) if one["name"] == variant)
    costs = [task["costs"] for task in result["tasks"]]
    swapped: dict[str, Any] = {}
    for diagnostics in directory.glob("diagnostics_*.json"):
        swaps = json.loads(diagnostics.read_text(encoding="utf-8"))["swap_test"]
        swapped = next((swap for swap in swaps if swap["trace"] == "none"), {})
    return Figures(
        lever,
        variant,
        seed,
        local=mean_rate(result, key="local"),
        union=mean_rate(result, key="union"),
        think_rate=sum(cost["reasoned"] for cost in costs) / max(1, sum(cost["queries"] for cost in costs)),
        without_trace_local=swapped.get("local"),
        without_trace_union=swapped.get("union"),
    )


def make_rows(figures: Sequence[Figures]) -> list[list[str]]:
    """The table's cells: a row for each lever, with the mean, least and greatest over its seeds."""
    rows = [["lever", "direct, local", "direct, union", "TRACE, local", "TRACE, union", "think rate", "without its trace"]]
    seeds = len({one.seed for one in figures})
    for lever in dict.fromkeys(one.lever for one in figures):
        of_lever = {variant: [one for one in figures if (one.lever, one.variant) == (lever, variant)] for variant in VARIANTS}
        traced = of_lever["trace"]
        pairs = [
            over_seeds([value for one in traced if (value := getattr(one, key)) is not None], seeds)
            for key in ("without_trace_local", "without_trace_union")
        ]
        rows.append(
            [
                lever,
                *(
                    over_seeds([getattr(one, key) for one in of_lever[v]], seeds)
                    for v in VARIANTS
                    for key in ("local", "union")
                ),
                over_seeds([one.think_rate for one in traced], seeds),
                " / ".join(filter(None, pairs)),
            ]
        )
    return rows


def _slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")


def _command(*words: object, jobs: int) -> None:
    """Runs a command of the program with its share of the cores; standard output is for the table."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if jobs > 1 else None
    words = (sys.executable, "-m", "mbeir_cot", *words, "--quiet")
    subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr, env=environment)


def main(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    recipe: Annotated[Path, typer.Option(help="A training's config.")] = Path("configs/train-pocket.yaml"),
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    levers: Annotated[str, typer.Option(help=f"Some of: {'; '.join(LEVERS)} [default: all].")] = "",
    verifier: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="A build's config, whose verifier judges the mined negatives.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A setting of all trainings: key.sub=value.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
) -> None:
    """Trains, evaluates, writes OUT/levers.json and prints a Markdown table in per cent."""
    given = tuple(overrides or ())
    settings = load_config(recipe, TrainConfig, given)
    if settings.optimiser.max_steps is None:
        raise ConfigError(f"{recipe} gives no number of steps", "add --set optimiser.max_steps=N")
    names = [name.strip() for name in levers.split(";")] if levers else list(LEVERS)
    if unknown := [name for name in names if name not in LEVERS]:
        raise ConfigError(f"--levers: {', '.join(unknown)}: unknown", f"separate them by semicolons: {'; '.join(LEVERS)}")
    names = [name for name in dict.fromkeys([PLAIN, *names]) if verifier is not None or not LEVERS[name].needs_verifier]
    order = [(seed, name, variant) for seed in range(seeds) for name in names for variant in LEVERS[name].variants]
    figures: dict[tuple[int, str, Variant], Figures] = {}

    def run(seed: int, name: str, variant: Variant) -> None:
        plain = out / f"{_slug(PLAIN)}-{seed}" / variant
        trial = Trial(settings, settings.optimiser.max_steps or 0, plain, variant, verifier)
        one = run_trial(trial, name, seed, recipe, out, given=given, jobs=jobs)
        if name == PLAIN and any(LEVERS[other].mines for other in names):
            mine(trial, jobs=jobs)
        figures[seed, name, variant] = one
        print(one, file=sys.stderr)

    with ThreadPoolExecutor(jobs) as pool:
        for step in ([key for key in order if key[1] == PLAIN], [key for key in order if key[1] != PLAIN]):
            for ended in as_completed([pool.submit(run, *key) for key in step]):
                if ended.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                ended.result()
                table = json.dumps([figures[key]._asdict() for key in order if key in figures], indent=1)
                (out / "levers.json").write_text(f"{table}\n", encoding="utf-8")
    header, *body = make_rows([figures[key] for key in order])
    print("\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)))


if __name__ == "__main__":
    typer.run(main)
