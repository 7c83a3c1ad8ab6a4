"""LamRA and UniIR: files in M-BEIR's own format, restricted to the records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.export.samples import Sample, plain
from pipeline.export.writer_result import Written
from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.layout import Layout
from schemas.mbeir import parse_id


def lamra(samples: Iterable[Sample], images: ImageStore, out: Path, negatives: int) -> Written:
    """Query, candidate and instruction files in M-BEIR's own format, which LamRA reads, with route and target added."""
    candidates: dict[str, dict[str, Any]] = {}
    count = 0
    with (out / "mbeir_cot_train.jsonl").open("w", encoding="utf-8") as queries:
        for sample in samples:
            row = sample.row
            for candidate in (*sample.positives, *sample.negatives):
                text = plain(candidate.txt) if candidate.txt is not None else None
                candidates[candidate.did] = candidate.model_dump(mode="json") | {"txt": text}
            _line(
                queries,
                {
                    "qid": row["qid"],
                    "query_txt": plain(row["query_text"]) if row["query_text"] is not None else None,
                    "query_img_path": row["query_image"],
                    "query_modality": row["query_modality"],
                    "query_src_content": None,
                    "pos_cand_list": [positive.did for positive in sample.positives],  # all: a missing one would be a negative
                    "neg_cand_list": [negative.did for negative in sample.negatives],
                    "task_id": row["task_id"],
                    "route": row["route"],
                    "target": sample.target,
                },
            )
            count += 1
    with (out / "mbeir_cot_train_cand_pool.jsonl").open("w", encoding="utf-8") as pool:
        for did in sorted(candidates, key=parse_id):
            _line(pool, candidates[did])
    shutil.copyfile(Layout.open(images.root).instructions, out / "query_instructions.tsv")
    return Written(count)


def _line(file: Any, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
