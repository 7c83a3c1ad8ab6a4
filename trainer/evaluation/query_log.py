"""How each query of an evaluation was embedded, as JSON lines: what it asks, its route, and its trace."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.files.state import read_lines
from schemas.mbeir import DatasetTask, Query
from trainer.embedding.query_embedding import QueryEmbedding


def queries_file(directory: Path, suffix: str, split: str) -> Path:
    """The log of one routing. directory: the evaluation's."""
    return directory / f"queries_{suffix}_{split}.jsonl"


def make_entry(record: str, task: DatasetTask, query: Query, instruction: str, embedding: QueryEmbedding) -> dict[str, Any]:
    """A line of the log. record: the query's record id. `trace` is the text that the embedding followed."""
    return {
        "id": record,
        "task": task.name,
        "qid": query.qid,
        "instruction": instruction,
        "text": query.query_txt,
        "image": query.query_img_path,
        "positives": list(query.pos_cand_list),
        "reasoned": embedding.reasoned,
        "ended": embedding.ended,
        "p_direct": round(embedding.p_direct, 6),
        "confidence": round(embedding.confidence, 4) if embedding.confidence is not None else None,
        **({"fell_back": True} if embedding.fell_back else {}),
        "tokens": embedding.tokens,
        "trace": embedding.trace,
    }


def write_query_log(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")


def read_query_log(path: Path) -> list[dict[str, Any]]:
    return read_lines(path)
