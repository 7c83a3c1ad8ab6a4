"""A world of more than the default number of training queries is the default one with further volumes."""

from __future__ import annotations

from collections import defaultdict

import pytest

from pocket.world.builder import DEFAULT_QUERIES, Book
from pocket.world.encyclopedia import encyclopedia
from pocket.world.ground_truth import QueryTruth
from pocket.world.write import make_world
from schemas.mbeir import SPLITS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def default() -> Book:
    return make_world()


@pytest.fixture(scope="module")
def larger() -> Book:
    return make_world(train_queries=DEFAULT_QUERIES + 1000)


def test_volumes_only_add_training_queries_and_training_candidates(default: Book, larger: Book) -> None:
    assert larger.pools == default.pools
    assert {split: larger.queries[split][: len(default.queries[split])] for split in SPLITS} == default.queries
    added = len(larger.queries["train"]) - len(default.queries["train"])
    assert 900 <= added <= 1000
    assert list(larger.candidates.items())[: len(default.candidates)] == list(default.candidates.items())
    further = set(larger.candidates) - set(default.candidates)
    assert further
    assert further <= set(larger.train_only)
    assert len({row["qid"] for row in larger.queries["train"]}) == len(larger.queries["train"])


def test_a_volume_asks_nothing_that_is_evaluated(larger: Book) -> None:
    shown = {row.path: row.content for row in larger.image_truths}
    asked = defaultdict(set)
    for split in ("train", "test"):
        for row, truth in zip(larger.queries[split], truths(larger, split), strict=True):
            assert row["qid"] == truth.qid
            picture = row["query_img_path"]
            if not truth.dataset_task.startswith(("oven", "infoseek")):  # the same entity, but another picture
                asked[split].add((truth.dataset_task, row["query_txt"], shown.get(picture)))
            if picture is not None:
                asked[f"{split} pictures"].add(picture)
    assert not asked["train"] & asked["test"]
    assert not asked["train pictures"] & asked["test pictures"]


def truths(book: Book, split: str) -> list[QueryTruth]:
    return [truth for truth in book.query_truths if truth.split == split]


def test_equal_content_of_a_composed_task_is_one_candidate(larger: Book) -> None:
    content = {truth.did: truth.content for truth in larger.candidate_truths}
    positives = defaultdict(set)
    for row in larger.queries["train"]:
        if row["qid"].startswith(("7:", "9:")):
            did = row["pos_cand_list"][0]
            positives[did.split(":")[0], content[did]].add(did)
    assert all(len(dids) == 1 for dids in positives.values())


def test_only_test_asks_about_entities_held_out_and_who_rules_a_town(larger: Book) -> None:
    held_out = {entity.name for entity in encyclopedia().held_out}
    assert len(held_out) == 16
    shown = {row.path: row.content for row in larger.image_truths}
    for split in SPLITS:
        texts = []
        for row, truth in zip(larger.queries[split], truths(larger, split), strict=True):
            if truth.dataset_task.startswith(("oven", "infoseek", "webqa")):
                texts.append(f"{row['query_txt']} {shown.get(row['query_img_path'] or '', '')}")
                assert (truth.unseen == "entity") >= any(name in truth.target.split(",")[0] for name in held_out)
        named = [text for text in texts if any(name in text.replace(";", " ").replace("?", " ").split() for name in held_out)]
        ruled = [text for text in texts if "rules the town" in text]
        if split == "test":
            assert len(named) > 80
            assert ruled
        else:
            assert not named
            assert not ruled
