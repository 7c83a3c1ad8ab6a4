"""Query files, row by row.

The up-sampled union file repeats rows, and qids repeat across splits: only (split, dataset, task, qid) identifies a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.mbeir.jsonl import LinePolicy, RejectsFile, read_rows
from schemas.mbeir import Query


def read_queries(
    path: Path, *, policy: LinePolicy = LinePolicy.STRICT, rejects: RejectsFile | None = None
) -> Iterator[tuple[int, Query]]:
    """(line number, query) in file order, with repeated rows."""
    return read_rows(path, Query, policy=policy, rejects=rejects)
