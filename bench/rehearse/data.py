"""Data of the rehearsal: a pocket world with tens of queries, and a dataset built from it.

The shipped config builds the dataset with an oracle as teacher, because nothing that a random checkpoint writes passes the screens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

KEPT_TASKS: Final = ("cirr_task7", "visualnews_task0", "webqa_task1")
"""Image and text, text to image, and text to text."""
QUERIES: Final = 6
CANDIDATES: Final = 24


def thin_evaluation(mbeir: Path) -> None:
    """Reduces val and test to a few queries of three dataset-tasks, and to small pools with their positives."""
    wanted: set[str] = set()
    for path in [*(mbeir / "query" / "val").iterdir(), *(mbeir / "query" / "test").iterdir()]:
        lines = path.read_text(encoding="utf-8").splitlines()[:QUERIES]
        path.unlink()
        if any(name in path.name for name in KEPT_TASKS):
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            wanted.update(did for line in lines for did in json.loads(line)["pos_cand_list"])
    for path in (mbeir / "cand_pool" / "local").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for number, line in enumerate(lines) if number < CANDIDATES or json.loads(line)["did"] in wanted]
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
