"""M-BEIR rows: wrong structure raises, missing content is a defect; UniIR's ids."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import CotError, InputError
from schemas.mbeir import (
    DATASET_IDS,
    DATASET_TASKS,
    TASK_MODALITIES,
    Candidate,
    DatasetTask,
    Modality,
    Query,
    hash_did,
    hash_qid,
    parse_id,
    unhash_did,
    unhash_qid,
)

# Real rows, from UniRAG's documentation.
MSCOCO_QUERY = {
    "qid": "9:6",
    "query_txt": None,
    "query_img_path": "mbeir_images/mscoco_images/val2014/COCO_val2014_000000391895.jpg",
    "query_modality": "image",
    "query_src_content": None,
    "pos_cand_list": ["9:2", "9:3", "9:4", "9:5", "9:6"],
    "neg_cand_list": [],
    "task_id": 3,
}
MSCOCO_TEXT = {
    "txt": "A man riding on the back of a motorcycle down a road.",
    "img_path": None,
    "modality": "text",
    "did": "9:14174",
    "src_content": None,
}


def query(**changes: object) -> Query:
    return Query.model_validate_json(json.dumps(MSCOCO_QUERY | changes))


def test_the_sixteen_dataset_tasks_are_those_of_the_benchmark() -> None:
    assert len(DATASET_TASKS) == len(set(DATASET_TASKS)) == 16
    assert {task.dataset for task in DATASET_TASKS} == set(DATASET_IDS)
    assert DATASET_TASKS[0].name == "visualnews_task0"
    assert DATASET_TASKS[-1].name == "infoseek_task8"
    assert (DATASET_TASKS[4].query_modality, DATASET_TASKS[4].cand_modality) == (Modality.TEXT, Modality.IMAGE_TEXT)


def test_real_rows_are_read() -> None:
    row = query()
    assert row.dataset_task.name == "mscoco_task3"
    assert row.pos_cand_list == ("9:2", "9:3", "9:4", "9:5", "9:6")
    assert row.defects == ()
    assert Candidate.model_validate(MSCOCO_TEXT).defects == ()


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"neg_cand_list": None}, "neg_cand_list", ()),
        ({"pos_cand_list": [{"did": "9:2"}]}, "pos_cand_list", ("9:2",)),
        ({"query_src_content": {"id": 1}}, "query_src_content", '{"id": 1}'),
        ({"query_src_content": '{"id": 1}'}, "query_src_content", '{"id": 1}'),
        ({"query_modality": "text,image", "task_id": 7, "query_txt": "x"}, "query_modality", Modality.IMAGE_TEXT),
        ({"an_unknown_key": 1}, "qid", "9:6"),
    ],
)
def test_differing_downloads_are_normal_input(changes: dict[str, object], field: str, value: object) -> None:
    assert getattr(query(**changes), field) == value


def test_absent_keys_are_normal_input() -> None:
    assert Candidate.model_validate({"did": "2:1", "modality": "text", "txt": "x"}).img_path is None


@pytest.mark.parametrize(
    "changes",
    [
        {"qid": "10:1"},
        {"qid": "9:0"},
        {"qid": "9:6\n"},
        {"qid": "9:500000"},
        {"qid": 6},
        {"pos_cand_list": []},
        {"pos_cand_list": None},
        {"pos_cand_list": ["9-2"]},
        {"pos_cand_list": [{"id": "9:2"}]},
        {"pos_cand_list": "9:2"},
        {"task_id": 0},
        {"task_id": 9},
        {"task_id": "3"},
        {"query_modality": "video"},
        {"query_txt": 5},
    ],
)
def test_wrong_structure_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        query(**changes)


def test_missing_content_is_a_defect_and_not_malformed() -> None:
    assert query(query_img_path=None).defects == ("no_image_path",)
    both = query(query_modality="image,text", task_id=7, query_txt=" ", query_img_path="")
    assert both.defects == ("empty_text", "no_image_path")
    assert Candidate.model_validate(MSCOCO_TEXT | {"txt": None}).defects == ("empty_text",)


@given(dataset=st.integers(0, 9), number=st.integers(1, 9_999_999))
def test_did_hash_is_uniirs_and_invertible(dataset: int, number: int) -> None:
    did = f"{dataset}:{number}"
    assert hash_did(did) == dataset * 10_000_000 + number
    assert unhash_did(hash_did(did)) == did


@given(dataset=st.integers(0, 9), number=st.integers(1, 499_999))
def test_qid_hash_is_uniirs_and_invertible(dataset: int, number: int) -> None:
    assert unhash_qid(hash_qid(f"{dataset}:{number}")) == f"{dataset}:{number}"


@given(st.text(max_size=12))
def test_split_id_accepts_only_ids(text: str) -> None:
    try:
        dataset, number = parse_id(text)
    except ValueError:
        return
    assert text.isascii()
    assert 0 <= dataset <= 9
    assert number >= 1


def test_numbers_beyond_the_hash_are_refused() -> None:
    with pytest.raises(ValueError, match="500,000"):
        hash_qid("9:500000")
    with pytest.raises(ValueError, match="10,000,000"):
        hash_did("9:10000000")


def test_every_used_task_has_modalities() -> None:
    assert all(task.task_id in TASK_MODALITIES for task in DATASET_TASKS)


def test_errors_pickle_and_say_what_to_do() -> None:
    error = pickle.loads(pickle.dumps(InputError("no file x.jsonl", "download it")))
    assert isinstance(error, CotError)
    assert str(error) == "no file x.jsonl\n  what to do: download it"


@pytest.mark.parametrize("task", DATASET_TASKS, ids=lambda task: task.name)
def test_a_dataset_task_is_found_by_its_name(task: DatasetTask) -> None:
    assert DatasetTask.parse(task.name) == task


@pytest.mark.parametrize("name", ["oven", "oven_task", "oven_task9", "oven_task-6", "nowhere_task6", "_task6", ""])
def test_an_unknown_dataset_task_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no dataset-task of M-BEIR"):
        DatasetTask.parse(name)
