"""The formats, one writer each: it takes samples and leaves files and a README that says how to use them.

Field names are those of each project's documentation; see the README that `write` leaves beside the files.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.samples import Sample, Side, side_of
from pipeline.mbeir.images import ImageStore, picture_value
from pipeline.mbeir.layout import Layout

Writer = Callable[[Iterable[Sample], ImageStore, Path], int]
"""(samples, M-BEIR's images, empty directory) -> how many were written."""

_VLM2VEC_IMAGE: Final = "<|image_1|>"
_ROW_GROUP: Final = 200


def sentence_transformers(found: Iterable[Sample], images: ImageStore, out: Path) -> int:
    """Parquet, a file for each dataset-task: anchor, positive and, where all rows have one, negative, images inside."""
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in found:
        row = {"anchor": _input(sample.query, images), "positive": _input(side_of(sample.positive), images)}
        if sample.negatives:
            row["negative"] = _input(side_of(sample.negatives[0]), images)
        parts[sample.task.name].append(row)
    for name, rows in parts.items():
        columns = ["anchor", "positive", *(["negative"] if all("negative" in row for row in rows) else [])]
        _write_inputs(out / f"{name}.parquet", rows, columns)
    return sum(map(len, parts.values()))


def _input(side: Side, images: ImageStore) -> Any:
    """What sentence-transformers takes: a text, an image, or both by their names."""
    image = picture_value(images, side.image) if side.image else None
    if image is None:
        return side.text
    return {"image": image, "text": side.text} if side.text else image


def _write_inputs(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    from datasets import Features, Image, Value  # noqa: PLC0415 (it imports pandas and much else)

    features: dict[str, Any] = {}
    for column in columns:
        first = rows[0][column]
        both = isinstance(first, dict) and "image" in first
        features[column] = (
            {"image": Image(), "text": Value("string")} if both else Value("string") if isinstance(first, str) else Image()
        )
    schema: pa.Schema = Features(features).arrow_schema
    table = pa.Table.from_pylist([{column: row[column] for column in columns} for row in rows], schema=schema)
    pq.write_table(table, path, row_group_size=_ROW_GROUP)


def llama_factory(found: Iterable[Sample], images: ImageStore, out: Path) -> int:
    """ShareGPT messages with `<image>`, and the entry of dataset_info.json."""
    rows = [{"messages": _conversation(sample), "images": _images(sample.query)} for sample in found]
    (out / "m_beir_cot.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    entry = {
        "m_beir_cot": {
            "file_name": "m_beir_cot.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    }
    (out / "dataset_info.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    return len(rows)


def ms_swift(found: Iterable[Sample], images: ImageStore, out: Path) -> int:
    """sft.jsonl: the query and the target to write. embedding.jsonl: anchor, positive and negative messages."""
    count = 0
    with (out / "sft.jsonl").open("w", encoding="utf-8") as sft, (out / "embedding.jsonl").open("w", encoding="utf-8") as pairs:
        for sample in found:
            _line(sft, {"messages": _conversation(sample), "images": _images(sample.query)})
            positive, negatives = side_of(sample.positive), [side_of(one) for one in sample.negatives]
            row = {
                "messages": [_said(sample.query)],
                "images": _images(sample.query),
                "positive_messages": [[_said(positive)]],
                "positive_images": [_images(positive)],
            }
            if negatives:
                row |= {
                    "negative_messages": [[_said(one)] for one in negatives],
                    "negative_images": [_images(one) for one in negatives],
                }
            _line(pairs, row)
            count += 1
    return count


def vlm2vec(found: Iterable[Sample], images: ImageStore, out: Path) -> int:
    """Parquet with MMEB-train's columns, a folder for each dataset-task."""
    parts: dict[str, list[dict[str, str]]] = defaultdict(list)
    for sample in found:
        row: dict[str, str] = {}
        negative = side_of(sample.negatives[0]) if sample.negatives else Side("", "")
        for (text, image), side in zip(
            (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path")),
            (sample.query, side_of(sample.positive), negative),
            strict=True,
        ):
            row |= {text: f"{_VLM2VEC_IMAGE}\n{side.text}" if side.image else side.text, image: side.image}
        parts[sample.task.name].append(row)
    for name, rows in parts.items():
        (out / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), out / name / "train-00000-of-00001.parquet")
    return sum(map(len, parts.values()))


def lamra(found: Iterable[Sample], images: ImageStore, out: Path) -> int:
    """Query, candidate and instruction files in M-BEIR's own format, which LamRA reads, with route and target added."""
    candidates: dict[str, dict[str, Any]] = {}
    count = 0
    with (out / "mbeir_cot_train.jsonl").open("w", encoding="utf-8") as queries:
        for sample in found:
            row = sample.row
            held = [*sample.positives, *sample.negatives]
            candidates |= {one.did: one.model_dump(mode="json") for one in held}
            _line(
                queries,
                {
                    "qid": row["qid"],
                    "query_txt": row["query_text"],
                    "query_img_path": row["query_image"],
                    "query_modality": row["query_modality"],
                    "query_src_content": None,
                    "pos_cand_list": [one.did for one in sample.positives],  # one that is left out would be a negative
                    "neg_cand_list": [one.did for one in sample.negatives],
                    "task_id": row["task_id"],
                    "route": row["route"],
                    "target": row["target"],
                },
            )
            count += 1
    with (out / "mbeir_cot_train_cand_pool.jsonl").open("w", encoding="utf-8") as pool:
        for did in sorted(candidates, key=lambda did: tuple(map(int, did.split(":")))):
            _line(pool, candidates[did])
    shutil.copyfile(Layout.open(images.root).instructions, out / "query_instructions.tsv")
    return count


def _conversation(sample: Sample) -> list[dict[str, str]]:
    return [_said(sample.query), {"role": "assistant", "content": sample.row["target"]}]


def _said(side: Side) -> dict[str, str]:
    return {"role": "user", "content": f"<image>{side.text}" if side.image else side.text}


def _images(side: Side) -> list[str]:
    return [side.image] if side.image else []


def _line(file: Any, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


FORMATS: Final[dict[str, Writer]] = {
    "sentence-transformers": sentence_transformers,
    "llama-factory": llama_factory,
    "ms-swift": ms_swift,
    "vlm2vec": vlm2vec,
    "lamra": lamra,
}


def readme(name: str, out: Path, dataset: str, count: int, skipped: int, *, synthetic: bool) -> str:
    """How to point the project at the files."""
    head = f"# {dataset} for {name}\n\n"
    if synthetic:
        head = f"**SYNTHETIC: invented queries and images (pocket world).**\n\n{head}"
    left = f"; {skipped:,} records are left out because no candidate pool holds their positives" if skipped else ""
    written = f"{count:,} records, written by `mbeir-cot export --format {name}`{left}. MBEIR below is the M-BEIR directory."
    body = (Path(__file__).parent / "readmes" / f"{name}.md").read_text(encoding="utf-8").replace("OUT", out.name)
    return f"{head}{written}\n\n{body}"
