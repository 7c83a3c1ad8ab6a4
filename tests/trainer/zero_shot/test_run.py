"""The suite for an embedder: the vectors that the public embedder gives, scored; kept task by task; what cannot be read counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import InputError
from schemas.training import TrainConfig
from tests.support.cli import mbeir_cot
from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.embedding.vectors import normalise
from trainer.embedding.workers import EmbedderSpec
from trainer.zero_shot.columns import columns
from trainer.zero_shot.contamination import Marks
from trainer.zero_shot.inputs import SuiteStore, TaskPool, picture_name, picture_of
from trainer.zero_shot.run import Scored, SuiteRun, TaskScores, _keep, _kept, wanted
from trainer.zero_shot.scoring import score
from trainer.zero_shot.suite import DATASETS
from trainer.zero_shot.suite_images import find
from trainer.zero_shot.tasks import Candidate, Measure, Picture, Query, Task


def tasks(root: Path) -> dict[str, Task]:
    return {task.name: task for dataset in DATASETS for task in dataset.open(root)}


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest) -> TraceEmbedder:
    config: TrainConfig = request.getfixturevalue("config")
    return TraceEmbedder(EmbedderSpec(config, None).load(), config)


def paint(root: Path) -> None:
    """A picture of its own for every file."""
    for seed, path in enumerate(sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".png", ".gif"))):
        cells = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((64, 48), Image.Resampling.NEAREST).save(path)


NAMES = ("mt-fiq", "vist", "genecis/change_object", "sugar-crepe/swap_obj", "flickr30k/i2t")


@pytest.mark.slow
def test_scores_are_those_of_the_public_embedders_vectors_and_are_kept(
    config: TrainConfig, root: Path, base: TraceEmbedder, tmp_path: Path
) -> None:
    paint(root)
    there = tasks(root)
    store = SuiteStore(root)
    with SuiteRun(config, None, root=root, out=tmp_path / "out") as suite:
        done = {name: suite.score(there[name], "bypass") for name in NAMES}
    for name in NAMES:
        task, one = there[name], done[name]
        queries, candidates = list(task.queries()), list(task.candidates())
        assert one.about.ids == [query.id for query in queries]
        assert (one.about.reasoned, one.about.unreadable_queries, one.about.unreadable_candidates) == (0, 0, 0)

        def shown(part: str | Picture) -> str | Path:
            return part if isinstance(part, str) else root / find(store, part)

        asked = [
            [shown(part) for part in query.parts]
            if len(query.parts) > 2 or len(query.pictures) > 1
            else (
                next((part for part in query.parts if isinstance(part, str)), None),
                next((shown(part) for part in query.pictures), None),
            )
            for query in queries
        ]
        vectors = [
            one.vector
            for one in base.embed_queries(
                [one if not isinstance(one, tuple) or one[1] else one[0] for one in asked],  # type: ignore[misc]
                instruction=[query.instruction for query in queries],
                route="always-direct",
            )
        ]
        found = base.embed_candidates([shown(candidate.parts[0]) for candidate in candidates])
        # as they are kept: in float16
        expected = score(
            task,
            normalise(np.stack([vector.half().numpy() for vector in vectors])),
            normalise(found.astype(np.float16)),
        )
        assert {metric: values.tolist() for metric, values in one.values.items()} == {
            metric: values.tolist() for metric, values in expected.items()
        }, name
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("task.json")}
    shutil.rmtree(root / "M-BEIR")  # its images: what is kept needs none
    with SuiteRun(config, None, root=root, out=tmp_path / "out") as suite:
        again = suite.score(there["mt-fiq"], "bypass")
    assert again.about == done["mt-fiq"].about
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("task.json")}
    with (
        SuiteRun(config, None, root=root, out=tmp_path / "other") as suite,
        pytest.raises(InputError, match="can be read"),
    ):
        suite.score(there["mt-fiq"], "bypass")


def test_what_cannot_be_read_is_a_miss_and_counted(config: TrainConfig, root: Path, tmp_path: Path) -> None:
    task = tasks(root)["vist"]
    queries = list(task.queries())
    lost = next(one for one in queries if one.positives[0] not in one.excluded)
    store = SuiteStore(root)
    gone = next(one for one in task.candidates() if one.id == lost.positives[0])
    file = root / find(store, gone.pictures[0])
    content = file.read_bytes()
    file.unlink()
    shows_it = {query.id for query in queries for picture in query.pictures if picture == gone.pictures[0]}
    with SuiteRun(config, None, root=root, out=tmp_path / "out") as suite:
        found = suite.score(task, "bypass")
    assert found.about.unreadable_candidates == 1
    assert found.about.unreadable_queries == len(shows_it)
    assert found.about.ids == [query.id for query in queries]
    for identifier in {lost.id, *shows_it}:
        assert found.values["R@10"][found.about.ids.index(identifier)] == 0
    listed = json.loads((tmp_path / "out/tasks/vist/unreadable_queries.json").read_text())
    assert {one["name"] for one in listed} == shows_it

    # it is kept as long as nothing can be read that could not, and made again once something can
    about = tmp_path / "out/tasks/vist/task.json"
    made = about.stat().st_mtime_ns
    with SuiteRun(config, None, root=root, out=tmp_path / "out") as suite:
        assert suite.score(task, "bypass").about == found.about
        assert about.stat().st_mtime_ns == made
    strict = config.model_copy(update={"data": config.data.model_copy(update={"most_unreadable": 0.0})})
    with (
        SuiteRun(strict, None, root=root, out=tmp_path / "out") as suite,
        pytest.raises(InputError, match="most_unreadable"),
    ):
        suite.score(task, "bypass")  # kept scores are no way around the setting
    with SuiteRun(config, None, root=root, out=tmp_path / "out") as suite:
        file.write_bytes(content)
        mended = suite.score(task, "bypass").about
    assert (mended.unreadable_queries, mended.unreadable_candidates) == (0, 0)


def test_a_picture_is_named_by_one_text() -> None:
    for picture in (Picture("a/b.jpg"), Picture("a.jpg", ("a.png",)), Picture("a.jpg", box=(1.0, 2.0, 3.5, 4.0))):
        assert picture_of(picture_name(picture)) == picture
    with pytest.raises(InputError, match="candidate c is no text"):
        TaskPool("t", [Candidate("c", ("a", "b"))])


def test_tasks_are_named_by_themselves_or_their_data_set(root: Path) -> None:
    there = list(tasks(root).values())
    assert {one.name.partition("/")[0] for one in wanted(there, ["genecis", "circo/val"])} == {"genecis", "circo"}
    assert "circo/test" not in {one.name for one in wanted(there, [])}
    with pytest.raises(InputError, match="no task gencis"):
        wanted(there, ["gencis"])


def scored(name: str, column: str, values: list[float]) -> Scored:
    ids = [str(at) for at in range(len(values))]
    counts = {"reasoned": 0, "cut": 0, "tokens": 0, "unreadable_queries": 0, "unreadable_candidates": 1}
    about = TaskScores(task=name, column=column, made_by={}, ids=ids, **counts)  # type: ignore[arg-type]
    return Scored(about=about, values={"R@1": np.array(values)})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_scores_that_are_damaged_are_made_again(tmp_path: Path, content: bytes) -> None:
    one = scored("t", "T", [1, 0])
    _keep(tmp_path / "t", one.about, one.values, {})
    assert _kept(tmp_path / "t", {}) is not None
    (tmp_path / "t" / "values.npz").write_bytes(content)
    assert _kept(tmp_path / "t", {}) is None


def test_scores_that_the_system_refuses_are_not_made_again(tmp_path: Path) -> None:
    one = scored("t", "T", [1, 0])
    _keep(tmp_path / "t", one.about, one.values, {})
    (tmp_path / "t" / "values.npz").unlink()
    (tmp_path / "t" / "values.npz").symlink_to("values.npz")
    with pytest.raises(InputError, match="lead in a circle"):
        _kept(tmp_path / "t", {})


def test_means_of_groups() -> None:
    one, two = scored("s/a", "S", [1, 0, 0, 0]), scored("s/b", "S", [1, 1])
    marks = {
        "s/a": {"0": Marks(pair=True), "1": Marks(), "2": Marks(text=True), "3": Marks()},
        "s/b": {"0": Marks(), "1": Marks()},
    }
    (column,) = columns([one, two], marks)
    assert (column.column, column.metric, column.unreadable_candidates) == ("S", "R@1", 2)
    assert column.groups["all"].macro == {"R@1": 0.625}
    assert column.groups["all"].micro == {"R@1": 0.5}
    assert column.groups["seen"].queries == 2
    assert column.groups["seen"].macro == {"R@1": 0.5}
    assert column.groups["unseen"].queries == 4
    assert column.groups["unseen"].macro == {"R@1": 0.5}
    assert column.groups["same pair"].micro == {"R@1": 1.0}
    assert "near-duplicate" not in column.groups
    assert set(columns([one])[0].groups) == {"all"}


def test_a_task_of_nothing_is_refused(config: TrainConfig, root: Path, tmp_path: Path) -> None:
    empty = replace(tasks(root)["vist"], queries=lambda: iter(()), measure=Measure.HITS)
    with (
        SuiteRun(config, None, root=root, out=tmp_path) as suite,
        pytest.raises(InputError, match="no queries or no candidates"),
    ):
        suite.score(empty)
    assert Query("q", ("a",), ()).pictures == ()


@pytest.mark.slow
def test_the_command(finished: Path, root: Path, tmp_path: Path) -> None:
    arguments = ("zero-shot", "run", finished, "--root", root, "--out", tmp_path / "out", "--quiet")
    done = mbeir_cot(*arguments, "--tasks", "sugar-crepe", "--tasks", "mt-fiq", timeout=200)
    assert done.returncode == 0, done.stderr
    assert "MT-FIQ" in done.stdout
    assert "unseen (n)" in done.stdout
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["column"] for one in content["columns"]] == ["MT-FIQ", "SugarCrepe"]
    refused = mbeir_cot(*arguments, "--route", "sideways")
    assert refused.returncode == 2
    assert "adaptive, bypass or reason" in refused.stderr


@pytest.mark.slow
def test_two_of_them_through_the_command(finished: Path, tmp_path: Path) -> None:
    made = mbeir_cot("pocket", "zero-shot", tmp_path / "suite", "--number", "6")
    assert made.returncode == 0, made.stderr
    done = mbeir_cot(
        *("zero-shot", "run", finished, "--root", tmp_path / "suite", "--out", tmp_path / "out"),
        *("--tasks", "vist", "--tasks", "sugar-crepe", "--quiet", "--json"),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    columns = {one["column"]: one for one in json.loads(done.stdout)["columns"]}
    assert set(columns) == {"VIST", "SugarCrepe"}
    assert columns["VIST"]["groups"]["all"]["queries"] == 6
    assert len(columns["SugarCrepe"]["groups"]["all"]["parts"]) == 7
    assert columns["VIST"]["unreadable_queries"] == 0
