"""The report of a run, and its model on the Hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.cli import mbeir_cot
from tests.support.hub_repos import TOKEN, HubRepos, hub_repos
from trainer.model.embedder import Embedder
from trainer.zero_shot.results import read_results

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def run(train_file: Path, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRACE and its control, two steps each, evaluated on a few queries."""
    out = tmp_path_factory.mktemp("report") / "run"
    suite = out.with_name("suite")
    assert mbeir_cot("pocket", "zero-shot", suite, "--number", "4").returncode == 0
    for folder in [one for one in suite.iterdir() if one.is_dir() and one.name not in ("vist", "sugar-crepe")]:
        shutil.rmtree(folder)
    settings = ["--set", "variants=[trace,direct]", "--set", "optimiser.max_steps=2", "--set", "data.hold_out=[webqa_task1]"]
    done = mbeir_cot("train", train_file, "--out", out, *settings, "--quiet", timeout=200)
    assert done.returncode == 0, done.stderr
    evaluation = ["--set", "evaluation.split=val", "--set", f"data.mbeir={tiny_world}", "--set", "evaluation.base=false"]
    done = mbeir_cot(
        "eval", out, *evaluation, "--set", "evaluation.swap_test=true", "--zero-shot", suite, "--quiet", timeout=280
    )
    assert done.returncode == 0, done.stderr
    for said in ("mean held out", "zero-shot suite", "SugarCrepe", "trace, by the trace's confidence"):
        assert said in done.stdout
    file = out / "train.json"  # as a config with these settings would have written it
    kept = json.loads(file.read_text())
    kept["evaluation"]["split"] = "val"
    kept["data"]["mbeir"] = str(tiny_world)
    file.write_text(json.dumps(kept))
    return out


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubRepos, dict[str, str]]]:
    """A Hub, and the environment of commands that use it: the same for all, so that they share a process."""
    home = str(tmp_path_factory.mktemp("hf"))
    with hub_repos() as server:
        yield server, {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": home}


def test_the_report_of_a_run(run: Path) -> None:
    done = mbeir_cot("report", run)
    assert done.returncode == 0, done.stderr
    text = (run / "report.html").read_text()
    for wanted in ("Learning curve: retrieval", "hit@k by task family", "The table, with controls", "Costs"):
        assert wanted in text
    for group in ("held out: webqa_task1", "mean held out", "Swap test", "TRACE by confidence of the trace", "Zero-shot suite"):
        assert group in text
    suite = read_results(run)
    assert [one.name for one in suite] == ["trace", "direct"]
    vist = next(one for one in suite[0].columns if one.column == "VIST")
    assert f"{100 * vist.groups['all'].macro[vist.metric]:.1f}" in text
    examples = json.loads(re.search(r'id="examples-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert {e["id"].split("/")[1] for e in examples} == {"cirr", "fashioniq", "webqa"}
    assert {e["tags"]["outcome"] for e in examples} <= {"win", "loss", "both hit", "both miss"}
    table = json.loads((run / "eval" / "results_val.json").read_text())
    trace = next(result for result in table if result["name"] == "trace")
    assert f"{100 * trace['tasks'][0]['local']:.1f}" in text


def test_the_report_needs_an_evaluation(run: Path, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes((run / "train.json").read_bytes())
    done = mbeir_cot("report", tmp_path)
    assert done.returncode == 2
    assert "was not evaluated" in done.stderr


def test_a_pushed_model_loads(run: Path, hub: tuple[HubRepos, dict[str, str]], tmp_path: Path) -> None:
    server, settings = hub
    done = mbeir_cot("push-model", run, "org/trace", **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    files = server.files("model", "org/trace")
    again = mbeir_cot("push-model", run, "org/trace", **settings)
    assert "nothing to do" in again.stdout
    unfinished = mbeir_cot("push-model", run, "org/trace", "--variant", "always-reason", **settings)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    card = files["README.md"].decode()
    assert "hit@k on the val split" in card
    assert "| cirr_task7 | 5 |" in card
    embedder = Embedder.load(tmp_path) if Path(json.loads(files["embedder.json"])["base"]).is_dir() else None
    identity = json.loads(files["embedder.json"])
    assert identity["pool"] == "pre"
    assert not Path(identity["base"]).is_absolute()
    assert embedder is None or embedder.metadata.pool == "pre"
    assert "mbeir-cot index org/trace --set data.mbeir=MBEIR --out INDEX" in card
    assert unfinished.returncode == 2
    assert "not finished" in unfinished.stderr


def test_a_pushed_model_works_by_name_and_by_directory(
    run: Path, hub: tuple[HubRepos, dict[str, str]], tiny_world: Path, tmp_path: Path
) -> None:
    """The card's commands index, search and score with the vectors of the run."""
    _, settings = hub
    base = json.loads((run / "trace" / "model" / "embedder.json").read_text())["base"]
    given = ["--set", f"data.mbeir={tiny_world}", "--set", f"model.base={base}"]  # the base is not on the Hub here
    pool = ["--pool", "webqa_task1", "--quiet"]
    made = mbeir_cot("index", run, "--out", tmp_path / "own", *pool)
    assert made.returncode == 0, made.stderr
    assert mbeir_cot("push-model", run, "org/trace", **settings).returncode == 0
    done = mbeir_cot("index", "org/trace", "--out", tmp_path / "index", *given, *pool, **settings)
    assert done.returncode == 0, done.stderr
    lost = mbeir_cot("index", "org/no-such", "--out", tmp_path / "x", *given, **settings)
    assert lost.returncode == 2
    assert "nor a repository that can be downloaded" in lost.stderr
    own, theirs = (np.load(tmp_path / name / "corpus_embed.npy") for name in ("own", "index"))
    assert float((own.astype(np.float32) * theirs).sum(1).min()) > 0.999  # fp16, and other batch shapes
    found = mbeir_cot("search", tmp_path / "index", "a red thing")
    assert found.returncode == 0, found.stderr
    (snapshot,) = (Path(settings["HF_HOME"]) / "hub").glob("models--org--trace/snapshots/*")
    blind = mbeir_cot("eval", snapshot, "--out", tmp_path / "scores")
    assert blind.returncode == 2
    assert "--set data.mbeir" in blind.stderr
    homeless = mbeir_cot("eval", snapshot, *given)
    assert homeless.returncode == 2
    assert "--out" in homeless.stderr
    scored = mbeir_cot(
        "eval", snapshot, "--out", tmp_path / "scores", *given, "--set", "evaluation.split=val", "--quiet", timeout=200
    )
    assert scored.returncode == 0, scored.stderr
    (result,) = json.loads((tmp_path / "scores" / "eval" / "results_val.json").read_text())[:1]
    assert (result["name"], {task["task"] for task in result["tasks"]}) == (
        "trace",
        {"cirr_task7", "fashioniq_task7", "webqa_task1"},
    )
