"""Every format, loaded as its project loads it, with arbitrary texts: all records, no nulls, one image tag per image."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, get_dataset_config_names, load_dataset
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.export.formats import FORMATS, texts
from pipeline.export.samples import Sample, Side, plain
from pipeline.mbeir.image_store import ImageStore
from schemas.mbeir import DATASET_TASKS, Candidate, DatasetTask, Modality
from schemas.record import EMB_TOKEN

pytestmark = [pytest.mark.slow]

MARKS = (
    "<image>",
    "<video>",
    "<audio>",
    "{{image}}",
    "<|image_1|>",
    "<|vision_start|><|image_pad|>",
    "<IMG_CONTEXT>",
    "<img>a</img>",
)
FRAGMENTS = ("<ima", "ge>", "<|", "|>", "{{", "}}", "{", "<", "\x01", "\r", "\n", "https://a.b/c.jpg", "  ")
NEGATIVES = 2
Shown = list[tuple[str, int]]
"""(text, number of its images)."""


@st.composite
def a_text(draw: st.DrawFn) -> str:
    pieces = st.one_of(st.text(max_size=4), st.sampled_from(MARKS), st.sampled_from(FRAGMENTS))
    return "".join(draw(st.lists(pieces, max_size=5)))


@st.composite
def a_candidate(draw: st.DrawFn, number: int, images: list[str], usual: Modality) -> Candidate:
    """Draws a candidate, usually of the task's modality; an image,text candidate may lack its text."""
    modality = draw(st.sampled_from((usual, usual, usual, *Modality)))
    text = draw(a_text()) if modality.has_text else None
    if modality is Modality.TEXT:
        text = f"x{text}"
    return Candidate(
        did=f"2:{number}", txt=text, img_path=draw(st.sampled_from(images)) if modality.has_image else None, modality=modality
    )


@st.composite
def a_sample(draw: st.DrawFn, number: int, images: list[str]) -> Sample:
    task = draw(
        st.sampled_from((DatasetTask("webqa", 1), DatasetTask("edis", 2), DatasetTask("nights", 4), DatasetTask("oven", 8)))
    )
    row: dict[str, Any] = {
        "qid": f"2:{number}",
        "instruction": "Find it.",
        "query_text": draw(a_text()) if task.query_modality.has_text else None,
        "query_image": draw(st.sampled_from(images)) if task.query_modality.has_image else None,
        "query_modality": str(task.query_modality),
        "task_id": task.task_id,
        "route": "reasoning",
        "target": f"{draw(a_text())} {EMB_TOKEN}",
    }
    query = Side(plain(f"Find it. {row['query_text'] or ''}"), row["query_image"] or "", task.query_modality)
    some = [draw(a_candidate(10 * number + i, images, task.cand_modality)) for i in range(1, draw(st.integers(2, 4)))]
    return Sample(row, task, query, tuple(some[:1]), tuple(some[1 : NEGATIVES + 1]))


def nulls(column: pa.Array | pa.ChunkedArray) -> int:
    """Counts null values at any depth."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: int = column.null_count
    if pa.types.is_struct(column.type):
        return found + sum(nulls(field) for field in column.flatten())
    return found + nulls(column.flatten()) if pa.types.is_list(column.type) else found


def loaded(out: Path, config: str | None, split: str = "train", **more: Any) -> Dataset:
    return load_dataset(str(out), config, split=split, cache_dir=str(out.parent / "cache"), **more)


def filled(found: Dataset, *, but: tuple[str, ...] = ()) -> Dataset:
    for column in found.column_names:
        assert column in but or not nulls(found.data.column(column)), column
    return found


def read_sentence_transformers(out: Path) -> tuple[int, Shown]:
    count, shown = 0, []
    for config in get_dataset_config_names(str(out)):
        found = filled(loaded(out, config))
        count += len(found)
        assert found.column_names[:2] == ["anchor", "positive"]
        for row in found:
            for value in row.values():
                side = value if isinstance(value, dict) else {"text": value} if isinstance(value, str) else {"image": value}
                assert all(part is not None for part in side.values())
                assert "image" in side or side["text"]
                assert not side.get("text", "").startswith("http")
                shown.append((side.get("text", ""), 0))
    assert len(loaded(out, None))
    return count, shown


def read_llama_factory(out: Path) -> tuple[int, Shown]:
    found = filled(loaded(out, None))
    return len(found), chats(found)


def chats(found: Dataset) -> Shown:
    for row in found:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"].endswith(EMB_TOKEN)
        assert row["messages"][1]["content"].count(EMB_TOKEN) == 1
    return [("".join(turn["content"] for turn in row["messages"]), len(row["images"])) for row in found]


def read_ms_swift(out: Path) -> tuple[int, Shown]:
    sft, pairs = filled(loaded(out, "sft")), filled(loaded(out, "embedding"))
    shown = chats(sft)
    assert len(sft) == len(pairs)
    for row in pairs:
        shown.append((row["messages"][0]["content"], len(row["images"])))
        assert len(row["positive_messages"]) == 1
        for kind in ("positive", "negative"):
            sides = zip(row[f"{kind}_messages"], row[f"{kind}_images"], strict=True)
            shown += [(turns[0]["content"], len(images)) for turns, images in sides]
    return len(sft), shown


def read_vlm2vec(out: Path) -> tuple[int, Shown]:
    names = get_dataset_config_names(str(out))
    assert "default" in names
    found = filled(loaded(out, None, "original"))
    assert len(found) == sum(len(loaded(out, name, "original")) for name in names if name != "default")
    shown = []
    for row in found:
        for text, image in zip(found.column_names[::2], found.column_names[1::2], strict=True):
            mark = "<|image_1|>\n" if row[image] else ""
            assert row[text].startswith(mark)
            shown.append((row[text].removeprefix(mark), 0))
        assert row["pos_text"]
    return len(found), shown


def read_lamra(out: Path) -> tuple[int, Shown]:
    files = {"queries": "mbeir_cot_train.jsonl", "pool": "mbeir_cot_train_cand_pool.jsonl"}
    queries, pool = (
        load_dataset("json", data_files=str(out / file), split="train", cache_dir=str(out.parent / "cache"))
        for file in files.values()
    )
    filled(queries, but=("query_txt", "query_img_path", "query_src_content"))
    held = {row["did"] for row in filled(pool, but=("txt", "img_path", "src_content"))}
    assert all(held >= {*row["pos_cand_list"], *row["neg_cand_list"]} for row in queries)
    return len(queries), [(row["query_txt"] or "", 0) for row in queries] + [(row["txt"] or "", 0) for row in pool]


def read_tevatron(out: Path) -> tuple[int, Shown]:
    queries = filled(loaded(out, None), but=("query_image",))
    corpus = filled(loaded(out, "corpus"), but=("image",))
    documents = {row["docid"]: row for row in corpus}
    assert len(documents) == len(corpus)
    assert all(row["text"] or row["image"] is not None for row in corpus)
    for row in queries:
        assert row["positive_document_ids"]
        assert documents.keys() >= {*row["positive_document_ids"], *row["negative_document_ids"]}
    having = sum(bool(row["negative_document_ids"]) for row in queries)
    assert ("with_negatives" in get_dataset_config_names(str(out))) == bool(having)
    assert not having or [bool(row["negative_document_ids"]) for row in loaded(out, "with_negatives")] == [True] * having
    return len(queries), [(row["query_text"], 0) for row in queries] + [(row["text"], 0) for row in corpus]


READERS: dict[str, Callable[[Path], tuple[int, Shown]]] = {
    "sentence-transformers": read_sentence_transformers,
    "llama-factory": read_llama_factory,
    "ms-swift": read_ms_swift,
    "vlm2vec": read_vlm2vec,
    "lamra": read_lamra,
    "tevatron": read_tevatron,
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])  # shrinking with files is slow
@given(st.data())
def test_a_project_loads_all_records_and_counts_as_many_pictures_as_there_are(
    name: str, small_world: Path, data: st.DataObject
) -> None:
    images = [
        f"mbeir_images/{path.relative_to(small_world / 'mbeir_images')}"
        for path in sorted((small_world / "mbeir_images").rglob("*.jpg"))[:3]
    ]
    samples = [data.draw(a_sample(number, images)) for number in range(1, data.draw(st.integers(2, 6)))]
    samples.sort(key=lambda sample: DATASET_TASKS.index(sample.task))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        out.mkdir()
        written = FORMATS[name](samples, ImageStore(small_world), out, NEGATIVES)
        for file, text in texts(name, out, "d", written, {}, synthetic=False).items():
            (out / file).write_text(text, encoding="utf-8")
        count, shown = READERS[name](out)
        assert count == written.count == len(samples)
        for text, pictures in shown:
            assert text.count("<image>") == pictures
            assert not [mark for mark in MARKS if mark != "<image>" and mark in text], text
