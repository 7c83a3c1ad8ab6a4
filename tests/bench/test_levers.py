"""The table of levers: which trainings it makes, and what it prints."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from bench import levers
from bench.levers import LEVERS, Figures, Trial, main, make_rows
from pipeline.config import load_config
from schemas.errors import ConfigError, InputError
from schemas.training import TrainConfig
from tests.bench.test_seeds import COSTS
from trainer.evaluation.results import Result, TaskResult, as_json

RECIPE = Path("configs/train-pocket.yaml")


@pytest.mark.parametrize("name", LEVERS)
def test_the_settings_of_each_lever_are_valid(name: str) -> None:
    recipe = load_config(RECIPE, TrainConfig)
    for variant in LEVERS[name].variants:
        changes = LEVERS[name].changes(Trial(recipe, 200, Path("plain"), variant))
        changed = load_config(RECIPE, TrainConfig, [*changes, f"variants=[{variant}]"])
        one, other = (c.model_dump(exclude={"variants"}) for c in (changed, recipe))
        assert (one == other) == (name == levers.PLAIN)


def test_a_row_has_the_mean_least_and_greatest_of_each_variant() -> None:
    figures = [
        Figures("recipe", "direct", seed, 0.5 + seed / 10, 0.4, 0.0, None, None) for seed in (0, 1)
    ] + [Figures("recipe", "trace", 0, 0.7, 0.6, 0.3, 0.1, 0.05), Figures("two stages", "trace", 0, 0.8, 0.6, 0.3, None, None)]  # fmt: skip
    header, recipe, stages = make_rows(figures)
    assert header[1] == "direct, local"
    assert recipe == ["recipe", "55.0 (50.0-60.0)", "40.0 (40.0-40.0)", "70.0 [one seed]", "60.0 [one seed]", "30.0 [one seed]",
                      "10.0 [one seed] / 5.0 [one seed]"]  # fmt: skip
    assert stages[:3] == ["two stages", "", ""]
    assert stages[-1] == ""


def test_it_trains_what_is_not_done_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands themselves have their own tests; here they leave the files that they would."""
    asked: list[tuple[Any, ...]] = []

    def command(*words: Any, jobs: int) -> None:
        assert jobs == 1
        asked.append(words)
        if words[0] == "eval":
            variant = words[1].name
            task = TaskResult("cirr_task7", 5, 0.5, 0.25, COSTS)
            (words[1] / "eval").mkdir(parents=True)
            (words[1] / "eval" / "results_test.json").write_text(as_json([Result(variant, [task])]))
        if words[0] == "mine":
            mined = words[1] / words[-1] / "mined"
            mined.mkdir(parents=True)
            (mined / "mined.parquet").touch()

    monkeypatch.setattr(levers, "_command", command)
    main(tmp_path, recipe=RECIPE, levers="mined negatives; two stages")
    assert [(words[0], Path(words[words.index("--out") + 1] if "--out" in words else words[1]).relative_to(tmp_path).as_posix())
            for words in asked] == [
        ("train", "recipe-0/direct"), ("eval", "recipe-0/direct"), ("mine", "recipe-0/direct"),
        ("train", "recipe-0/trace"), ("eval", "recipe-0/trace"), ("mine", "recipe-0/trace"),
        ("train", "mined-negatives-0/direct"), ("eval", "mined-negatives-0/direct"),
        ("train", "mined-negatives-0/trace"), ("eval", "mined-negatives-0/trace"),
        ("train", "two-stages-0/trace"), ("eval", "two-stages-0/trace"),
    ]  # fmt: skip
    assert "| mined negatives | 50.0 | 25.0 | 50.0 | 25.0 | 40.0 |  |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "levers.json").read_text())) == 5
    before = len(asked)
    main(tmp_path, recipe=RECIPE, levers="two stages")
    assert len(asked) == before
    with pytest.raises(InputError, match="other settings"):
        main(tmp_path, recipe=RECIPE, levers="two stages", overrides=["optimiser.max_steps=20"])
    with pytest.raises(ConfigError, match="--levers: nothing: unknown"):
        main(tmp_path, recipe=RECIPE, levers="nothing")


def test_several_at_a_time_give_the_same_table_and_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environments: list[dict[str, str]] = []
    both = threading.Barrier(2, timeout=20)  # the trainings of both variants have to run at once

    def run(words: list[str], *, env: dict[str, str], **_: Any) -> None:
        environments.append(env)
        if words[3] == "train":
            both.wait()
        if words[3] == "eval":
            run_directory = Path(words[4])
            local = 0.5 if run_directory.name == "direct" else 0.75
            (run_directory / "eval").mkdir(parents=True)
            result = Result(run_directory.name, [TaskResult("cirr_task7", 5, local, 0.25, COSTS)])
            (run_directory / "eval" / "results_test.json").write_text(as_json([result]))

    monkeypatch.setattr(levers.subprocess, "run", run)
    monkeypatch.setattr(levers.os, "cpu_count", lambda: 6)
    main(tmp_path, recipe=RECIPE, levers="Muon", jobs=2)
    assert {env["OMP_NUM_THREADS"] for env in environments} == {"3"}
    assert "| Muon | 50.0 | 25.0 | 75.0 | 25.0 | 40.0 |  |" in capsys.readouterr().out
    assert [(one["lever"], one["variant"]) for one in json.loads((tmp_path / "levers.json").read_text())] == [
        ("recipe", "direct"), ("recipe", "trace"), ("Muon", "direct"), ("Muon", "trace"),
    ]  # fmt: skip


def test_a_training_that_fails_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(levers.subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        main(tmp_path, recipe=RECIPE, levers="Muon", jobs=2)
