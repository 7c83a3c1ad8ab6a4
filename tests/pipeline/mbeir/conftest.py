"""A hand-made M-BEIR directory with every quirk of the real one that counts as normal input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

INSTRUCTIONS = """\
query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4
image\ttext\tMSCOCO\t9\tFind a caption.\tCaption this.\tWhich caption fits?\tSay what it shows.
text\timage\tMSCOCO\t9\tFind a picture.\tShow a picture.\tWhich picture fits?\tDraw it from memory.
image,text\ttext\tOVEN\t5\tName it.\tWhat is it?\tIdentify it.\tTell its name.
image,text\timage,text\tOVEN\t5\tShow and name it.\tFind its page.\tIdentify it.\tGive its page.
image,text\ttext\tINFOSEEK\t6\tAnswer it.\tFind the answer.\tTell me.\tWhere is it said?
"""


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str], *, newline: str = "\n", end: bool = True) -> Path:
    """Writes rows as JSON lines; strings are written unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes((newline.join(lines) + (newline if end else "")).encode())
    return path


def edit_first(path: Path, **changes: Any) -> None:
    """Changes values in the first row of a JSON Lines file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    write_lines(path, [rows[0] | changes, *rows[1:]])


def write_image(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), colour).save(path)
    return path


COCO = "mbeir_images/mscoco_images/val2014"
OVEN = "mbeir_images/oven_images"


@pytest.fixture
def mbeir(tmp_path: Path) -> Path:
    """MSCOCO task 3 and OVEN tasks 6 and 8 of val and train, with: null query_txt, absent keys, src_content as a JSON string, an
    object or null, CRLF, a byte order mark, blank lines, positives of other datasets that the local pool lacks, repeated rows in
    the up-sampled union, qids that repeat across splits, lists in the form of the dataset card."""
    root = tmp_path / "M-BEIR"
    for number in range(1, 4):
        write_image(root / COCO / f"COCO_{number}.jpg")
    write_image(root / OVEN / "11" / "q1.jpg", "blue")
    write_image(root / OVEN / "wikipedia_images_full" / "Q123" / "Q1234.jpg", "green")
    (root / "instructions").mkdir(parents=True)
    (root / "instructions" / "query_instructions.tsv").write_bytes(INSTRUCTIONS.strip().replace("\n", "\r\n").encode())

    coco = [
        {
            "qid": f"9:{number}",
            "query_txt": None,
            "query_img_path": f"{COCO}/COCO_{number}.jpg",
            "query_modality": "image",
            "query_src_content": None,
            "pos_cand_list": [f"9:{10 * number}", f"9:{10 * number + 1}"],
            "neg_cand_list": [],
            "task_id": 3,
        }
        for number in range(1, 4)
    ]
    captions = [{"did": did, "txt": f"Caption {did}.", "modality": "text"} for query in coco for did in query["pos_cand_list"]]
    write_lines(root / "query/val/mbeir_mscoco_task3_val.jsonl", coco, newline="\r\n")
    write_lines(root / "query/train/mbeir_mscoco_train.jsonl", coco)  # the same qids in another split
    write_lines(root / "cand_pool/local/mbeir_mscoco_task3_val_cand_pool.jsonl", captions, end=False)
    write_qrels(root, "val/mbeir_mscoco_task3_val", coco)
    write_qrels(root, "train/mbeir_mscoco_train", coco)

    oven_text = {
        "qid": "5:1",
        "query_txt": "What is this?",
        "query_img_path": f"{OVEN}/11/q1.jpg",
        "query_modality": "image,text",
        "query_src_content": json.dumps({"entity": "Q1234"}),
        "pos_cand_list": ["5:1", "6:7"],  # 6:7 is InfoSeek's copy: in the global pool only
        "neg_cand_list": ["5:2"],
        "task_id": 6,
    }
    oven_both = oven_text | {"qid": "5:2", "pos_cand_list": [{"did": "5:3"}], "query_modality": "text,image", "task_id": 8}
    oven_both["query_src_content"] = {"entity": "Q1234"}  # as in downloads before the re-issue
    for split in ("train", "val"):
        if split == "train":
            write_lines(root / "query/train/mbeir_oven_train.jsonl", [oven_text, "", oven_both])
            write_qrels(root, "train/mbeir_oven_train", [oven_text, oven_both])
        else:
            write_lines(root / "query/val/mbeir_oven_task6_val.jsonl", ["\ufeff" + json.dumps(oven_text)])
            write_lines(root / "query/val/mbeir_oven_task8_val.jsonl", [oven_both])
            write_qrels(root, "val/mbeir_oven_task6_val", [oven_text])
            write_qrels(root, "val/mbeir_oven_task8_val", [oven_both])
    texts = [
        {"did": "5:1", "txt": "Entity. A lake.", "modality": "text", "src_content": json.dumps({"wikidata_id": "Q1234"})},
        {"did": "5:2", "txt": "Entity. A hill.", "img_path": None, "modality": "text", "src_content": None},
    ]
    both = [
        {
            "did": "5:3",
            "txt": "Entity. A lake.",
            "img_path": f"{OVEN}/wikipedia_images_full/Q123/Q1234.jpg",
            "modality": "image,text",
            "src_content": {"wikidata_id": "Q1234"},
        }
    ]
    copies = [{"did": "6:7", "txt": "Entity. A lake.", "modality": "text"}]
    write_lines(root / "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl", texts)
    write_lines(root / "cand_pool/local/mbeir_oven_task8_cand_pool.jsonl", both)
    write_lines(root / "cand_pool/global/mbeir_union_train_cand_pool.jsonl", [*texts, *both, *copies, *captions])
    write_lines(root / "cand_pool/global/mbeir_union_val_cand_pool.jsonl", [*texts, *both, *copies, *captions])
    write_lines(root / "query/union_train/mbeir_union_up_train.jsonl", [oven_text, *coco, oven_both, oven_text])
    write_lines(root / "query/union_val/mbeir_union_val.jsonl", [oven_text, oven_both, *coco])
    return root


def write_qrels(root: Path, stem: str, queries: Iterable[Mapping[str, Any]]) -> Path:
    path = root / "qrels" / f"{stem}_qrels.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for query in queries:
            for did in query["pos_cand_list"]:
                did = did["did"] if isinstance(did, dict) else did
                file.write(f"{query['qid']} 0 {did} 1 {query['task_id']}\n")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
