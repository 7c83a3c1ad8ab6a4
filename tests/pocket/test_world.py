"""The written world is a valid M-BEIR directory whose truth is known."""

from __future__ import annotations

import ast
import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from pipeline.mbeir.check import check
from pipeline.mbeir.instructions import InstructionTable
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from pocket.world.builder import DEFAULT_QUERIES, TEST_QUERIES, VAL_QUERIES
from pocket.world.ground_truth import Truth
from pocket.world.write import UP_SAMPLED, write_world
from schemas.errors import CotError
from schemas.mbeir import DATASET_TASKS, DatasetTask, Query, Split
from tests.support.cli import mbeir_cot
from tests.support.sources import nodes

ROOT = Path(__file__).parents[2]


def queries(world: Path, split: Split) -> dict[DatasetTask, list[Query]]:
    found: dict[DatasetTask, list[Query]] = defaultdict(list)
    for file in Layout(world / "mbeir").query_files():
        if file.split == split:
            for _, query in read_queries(file.path):
                found[query.dataset_task].append(query)
    return found


def pool(world: Path, task: DatasetTask, split: Split) -> set[str]:
    path = Layout(world / "mbeir").local_pool(task, split)
    assert path is not None
    return {json.loads(line)["did"] for line in path.read_text().splitlines()}


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_seed_determines_every_byte(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", seed=11, train_queries=320)
    assert tree(tmp_path / "again") == tree(world)
    write_world(tmp_path / "other", seed=12, train_queries=320)
    assert tree(tmp_path / "other") != tree(world)


def test_it_is_a_valid_mbeir_directory(world: Path) -> None:
    report = check(world / "mbeir", decode=True)
    assert report.ok, report.findings
    assert {f.code for f in report.findings} == {"positives_outside_local_pool", "repeated_rows"}
    layout = Layout(world / "mbeir")
    assert len(list(layout.query_files())) == 44
    assert len(list(layout.pool_files())) == 18 + 3
    table = InstructionTable.load(layout.instructions)
    assert all(len(table.prompts(*_key(task))) == 4 for task in DATASET_TASKS)
    assert b"\r\n" in layout.instructions.read_bytes()


def _key(task: DatasetTask):  # type: ignore[no-untyped-def]
    from schemas.mbeir import DATASET_IDS

    return DATASET_IDS[task.dataset], task.query_modality, task.cand_modality


def test_sizes(world: Path) -> None:
    assert DEFAULT_QUERIES == 2000
    assert {len(found) for found in queries(world, "val").values()} == {VAL_QUERIES}
    test = queries(world, "test")
    assert {len(found) for found in test.values()} == {TEST_QUERIES}
    assert set(test) == set(DATASET_TASKS)
    for task, found in test.items():
        candidates = pool(world, task, "test")
        assert len(candidates) >= 200
        inside = [sum(did in candidates for did in query.pos_cand_list) for query in found]
        misses = [_miss(len(candidates), count) for count in inside]
        assert 1 - sum(misses) / len(misses) < 0.03, f"random hit@5 of {task.name}"
    assert sum(map(len, queries(world, "train").values())) == pytest.approx(320, abs=40)


def _miss(candidates: int, positives: int) -> float:
    """Probability that none of `positives` is among five random candidates."""
    chance = 1.0
    for draw in range(5):
        chance *= (candidates - positives - draw) / (candidates - draw)
    return chance


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_positives_are_exactly_the_correct_candidates(world: Path, truth: Truth, split: Split) -> None:
    content = {row.did: row.content for row in truth.candidates}
    targets = {(row.split, row.dataset_task, row.qid): row.target for row in truth.queries}
    for task, found in queries(world, split).items():
        if task.dataset == "mscoco" and split == "train":
            continue
        members = pool(world, task, split)
        by_content = defaultdict(set)
        for did in members:
            by_content[content[did]].add(did)
        for query in found:
            right = by_content[targets[split, task.name, query.qid]]
            assert right == members & set(query.pos_cand_list)


def test_composed_targets_differ_from_their_reference_and_near_misses_are_in_the_pool(world: Path, truth: Truth) -> None:
    shown = {row.path: row.content for row in truth.images}
    rows = {(row.split, row.dataset_task, row.qid): row for row in truth.queries}
    for name in ("cirr", "fashioniq"):
        task = DatasetTask(name, 7)
        members = pool(world, task, "test")
        contents = {row.content for row in truth.candidates if row.did in members}
        for query in queries(world, "test")[task]:
            row = rows["test", task.name, query.qid]
            assert query.query_img_path is not None
            reference = shown[query.query_img_path]
            assert reference != row.target
            assert reference in contents
            if row.needs_reasoning:
                assert row.steps[0] == reference
                assert row.steps[2] == row.target


def test_routing_per_query_can_beat_routing_by_dataset(truth: Truth) -> None:
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    for row in truth.queries:
        counts[row.dataset_task][row.needs_reasoning] += 1
    for name in ("cirr_task7", "fashioniq_task7", "oven_task6", "oven_task8", "infoseek_task6", "infoseek_task8"):
        assert 0.2 < counts[name][False] / counts[name].total() < 0.6, name
    for name in ("visualnews_task0", "mscoco_task0", "fashion200k_task0", "webqa_task1", "webqa_task2", "edis_task2"):
        assert 0.1 < counts[name][True] / counts[name].total() < 0.4, name
    assert len({row.why for row in truth.queries}) == 7


def test_test_queries_are_not_training_queries(world: Path, truth: Truth) -> None:
    shown = {row.path: row.content for row in truth.images}

    def keys(split: Split) -> set[tuple[str, str | None, str | None]]:
        return {
            (task.name, query.query_txt, shown.get(query.query_img_path or ""))
            for task, found in queries(world, split).items()
            for query in found
            if task.dataset not in ("oven", "infoseek")  # the same entity, but another picture
        }

    assert not keys("train") & keys("test")
    paths = {
        split: {q.query_img_path for found in queries(world, split).values() for q in found} - {None}
        for split in ("train", "test")
    }
    assert not paths["train"] & paths["test"]


def test_quirks_are_those_of_the_real_files(world: Path) -> None:
    layout = Layout(world / "mbeir")
    test = queries(world, "test")
    assert all(query.query_txt is None for query in test[DatasetTask("nights", 4)])
    oven = test[DatasetTask("oven", 6)]
    assert all(query.pos_cand_list[0].startswith("5:") for query in oven)
    assert all(any(did.startswith("6:") for did in query.pos_cand_list) for query in oven)
    assert len(test[DatasetTask("mscoco", 3)][0].pos_cand_list) == 5
    assert any(len(query.pos_cand_list) > 1 for query in test[DatasetTask("fashion200k", 0)])
    assert any(query.neg_cand_list for query in test[DatasetTask("edis", 2)])
    webqa = layout.local_pool(DatasetTask("webqa", 1), "test")
    assert webqa is not None
    assert "img_path" not in json.loads(webqa.read_text().splitlines()[0])
    union = Counter(query.qid for _, query in read_queries(layout.queries("union_train")))
    for task, found in queries(world, "train").items():
        assert {union[query.qid] for query in found} == {2 if task.dataset in UP_SAMPLED else 1}
    test_pool = [json.loads(line)["did"] for line in layout.global_pool("test").read_text().splitlines()]
    assert set(test_pool) == set().union(*(pool(world, task, "test") for task in DATASET_TASKS))


def test_pictures_are_128_pixel_jpegs(world: Path, truth: Truth) -> None:
    for row in truth.images[::50]:
        data = (world / "mbeir" / row.path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("JPEG", (128, 128))


def test_it_is_labelled_as_synthetic(world: Path) -> None:
    assert (world / "README.md").read_text().startswith("# SYNTHETIC")


def test_the_truth_is_outside_the_benchmark(world: Path) -> None:
    assert not [path for path in (world / "mbeir").rglob("*") if "truth" in path.name]
    assert not any("why" in json.loads(line) for file in (world / "mbeir" / "query").rglob("*.jsonl") for line in file.open())


@pytest.mark.parametrize("package", ["pipeline", "trainer"])
def test_no_module_may_read_the_truth(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in nodes(path):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not any(name.startswith("pocket.world") for name in names), f"{path} imports the world"
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                assert "truth/" not in node.value, f"{path} names the truth"


def test_the_command_keeps_an_equal_world_and_refuses_another(world: Path) -> None:
    before = (world / "world.json").stat()
    done = mbeir_cot("pocket", "world", world, "--seed", "11", "--queries", "320")
    assert (done.returncode, "up to date" in done.stdout) == (0, True)
    after = (world / "world.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    refused = mbeir_cot("pocket", "world", world, "--seed", "12", "--queries", "320")
    assert refused.returncode == 2
    assert "--force" in refused.stderr


def test_an_existing_directory_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(CotError, match="exists and is not this world"):
        write_world(tmp_path / "mine", train_queries=64)
    assert (tmp_path / "mine" / "work.txt").read_text() == "mine"
