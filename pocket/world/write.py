"""Writes a world: a valid M-BEIR directory, with its ground truth beside it.

    OUT/mbeir/   query/ cand_pool/ qrels/ instructions/ mbeir_images/
    OUT/truth/   for tests and measurements only
    OUT/README.md, OUT/world.json

Generator version, seed and number of training queries determine the bytes. OUT is written to a temporary directory and renamed.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.mbeir.layout import Layout
from pocket.world.builder import DEFAULT_QUERIES, Book
from pocket.world.datasets.cirr_fashioniq import add_composed
from pocket.world.datasets.edis import add_edis
from pocket.world.datasets.fashion200k import add_fashion200k
from pocket.world.datasets.mscoco import add_mscoco
from pocket.world.datasets.nights import add_nights
from pocket.world.datasets.oven_infoseek import add_oven_and_infoseek
from pocket.world.datasets.visualnews import add_visualnews
from pocket.world.datasets.webqa import add_webqa
from pocket.world.ground_truth import CANDIDATES, IMAGES, QUERIES
from pocket.world.instructions import INSTRUCTIONS
from schemas.errors import CotError
from schemas.mbeir import DATASET_IDS, DATASET_NAMES, DATASET_TASKS, SPLITS, DatasetTask, Split, hash_did, hash_qid
from schemas.os_errors import explained

GENERATOR_VERSION: Final = 2
DEFAULT_SEED: Final = 7
UP_SAMPLED: Final = ("webqa", "edis", "nights", "fashioniq", "cirr")
"""Datasets whose training rows are repeated in the union file, as in M-BEIR."""


class WorldInfo(BaseModel):
    """``world.json``: the parameters that determine the bytes of a world."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    synthetic: bool = True
    generator_version: int
    seed: int
    train_queries: int


def make_world(seed: int = DEFAULT_SEED, train_queries: int = DEFAULT_QUERIES) -> Book:
    """Draws a complete world in memory: the default number of training queries, then further volumes of as many."""
    first = min(train_queries, DEFAULT_QUERIES)
    book = Book(random.Random(f"world:{GENERATOR_VERSION}:{seed}:{first}"), first)  # noqa: S311
    _add_all(book)
    remaining = train_queries - first
    while remaining > 0:
        name = f"world:{GENERATOR_VERSION}:{seed}:{first}:volume {book.volume + 1}"
        book.open_volume(random.Random(name), min(remaining, DEFAULT_QUERIES))  # noqa: S311
        _add_all(book)
        remaining -= DEFAULT_QUERIES
    return book


def _add_all(book: Book) -> None:
    for add in (
        add_visualnews,
        add_mscoco,
        add_fashion200k,
        add_webqa,
        add_edis,
        add_nights,
        add_oven_and_infoseek,
        add_composed,
    ):
        add(book)


def write_world(out: Path, *, seed: int = DEFAULT_SEED, train_queries: int = DEFAULT_QUERIES, force: bool = False) -> bool:
    """Writes the world to `out`. Returns False if the same world is there already.

    Raises CotError if `out` holds something else (unless `force`) or the disk fails.
    """
    info = WorldInfo(generator_version=GENERATOR_VERSION, seed=seed, train_queries=train_queries)
    if _read_info(out) == info:
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise CotError(f"{out} exists and is not this world", "name another directory, or pass --force to replace it")
    book = make_world(seed, train_queries)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            temporary.chmod(0o755)
            _write(book, temporary, info)
            if out.exists():
                shutil.rmtree(out)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise CotError(f"cannot write the world to {out}: {explained(error).cause}", explained(error).remedy) from error
    return True


def _read_info(out: Path) -> WorldInfo | None:
    try:
        return WorldInfo.model_validate_json((out / "world.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _write(book: Book, out: Path, info: WorldInfo) -> None:
    layout = Layout(out / "mbeir")
    for path, content in book.images.items():
        place = layout.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    _write_instructions(layout)
    _write_queries(book, layout)
    _write_pools(book, layout)
    truth = out / "truth"
    _write_rows(truth / QUERIES, (row.model_dump(mode="json") for row in book.query_truths))
    _write_rows(truth / CANDIDATES, (row.model_dump(mode="json") for row in book.candidate_truths))
    _write_rows(truth / IMAGES, (row.model_dump(mode="json") for row in book.image_truths))
    (out / "README.md").write_text(_readme(book, info), encoding="utf-8")
    (out / "world.json").write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_instructions(layout: Layout) -> None:
    lines = ["query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4"]
    for task in DATASET_TASKS:
        prompts = "\t".join(INSTRUCTIONS[task.name])
        lines.append(f"{task.query_modality}\t{task.cand_modality}\t{task.dataset}\t{DATASET_IDS[task.dataset]}\t{prompts}")
    layout.instructions.parent.mkdir(parents=True, exist_ok=True)
    layout.instructions.write_bytes("\r\n".join(lines).encode())


def _task(row: Mapping[str, Any]) -> DatasetTask:
    return DatasetTask(DATASET_NAMES[int(row["qid"][0])], row["task_id"])


def _write_queries(book: Book, layout: Layout) -> None:
    for split in SPLITS:
        rows = book.queries[split]
        if split == "train":
            for dataset in DATASET_IDS:
                path = layout.queries("train", dataset=dataset)
                _write_query_file(layout, path, split, [row for row in rows if _task(row).dataset == dataset])
        else:
            for task in DATASET_TASKS:
                _write_query_file(layout, layout.queries(split, task), split, [row for row in rows if _task(row) == task])
    union = [row for row in book.queries["train"] for _ in range(2 if _task(row).dataset in UP_SAMPLED else 1)]
    book.rng.shuffle(union)
    _write_rows(layout.queries("union_train"), union)
    _write_rows(layout.queries("union_val"), sorted(book.queries["val"], key=lambda row: hash_qid(row["qid"])))


def _write_query_file(layout: Layout, path: Path, split: Split, rows: list[dict[str, Any]]) -> None:
    _write_rows(path, rows)
    qrels = layout.root / "qrels" / split / f"{path.stem}_qrels.txt"
    qrels.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{row['qid']} 0 {did} 1 {row['task_id']}\n" for row in rows for did in row["pos_cand_list"]]
    qrels.write_text("".join(lines), encoding="utf-8")


def _write_pools(book: Book, layout: Layout) -> None:
    for name, dids in book.pools.items():
        path = layout.root / "cand_pool" / "local" / f"mbeir_{name}_cand_pool.jsonl"
        _write_rows(path, (book.candidates[did] for did in dids))
    split_specific = {did for name, dids in book.pools.items() if name.startswith("mscoco") for did in dids}
    train = [did for did in book.candidates if did not in split_specific]
    val = {did for row in book.queries["val"] for did in (*row["pos_cand_list"], *row["neg_cand_list"])}
    test = {did for name, dids in book.pools.items() if not name.endswith("_val") for did in dids}
    for split, members in (("train", train), ("val", val), ("test", test)):
        ordered = sorted(members, key=hash_did)
        _write_rows(
            layout.root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl", (book.candidates[d] for d in ordered)
        )


def _readme(book: Book, info: WorldInfo) -> str:
    counts = ", ".join(f"{len(book.queries[split]):,} {split}" for split in SPLITS)
    return f"""# SYNTHETIC: a pocket world, a miniature M-BEIR

Nothing here is real. The pictures are drawn, the entities, towns, persons and news are invented, and every sentence comes
from a template. It has the layout and the file formats of M-BEIR so that the same programs run on it; numbers measured on it
say nothing about M-BEIR.

* `mbeir/`: {counts} queries, {len(book.candidates):,} candidates, {len(book.images):,} pictures of 128x128.
* `truth/`: what the pictures show and what the queries mean. For tests and measurements only: no part of the pipeline or
  the trainer reads it.

Made by `mbeir-cot pocket world OUT --seed {info.seed} --queries {info.train_queries}` (generator version
{info.generator_version}); the same command writes the same bytes.
"""
