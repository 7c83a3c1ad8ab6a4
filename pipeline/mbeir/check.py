"""Finds every problem of an M-BEIR directory in one pass over its files.

An *error* makes rows unusable or scores wrong. A *warning* is something missing that only part of the work needs. A *note* is a
normal quirk of the real benchmark.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from pipeline.mbeir.findings import CheckResult, Findings, Severity
from pipeline.mbeir.image_store import MAX_RATIO, ImageProblem, ImageStore
from pipeline.mbeir.instructions import InstructionTable
from pipeline.mbeir.jsonl import LineProblem, MalformedInput, scan_rows
from pipeline.mbeir.layout import Layout, PoolFile, QueryFile
from pipeline.mbeir.positives import DOWNLOAD, Asked, Positives, check_positives
from pipeline.mbeir.qrels import load_relevant
from pipeline.mbeir.stores import plain_store
from pipeline.progress_meter import Meter
from schemas.errors import InputError
from schemas.mbeir import (
    DATASET_TASKS,
    TASK_MODALITIES,
    Candidate,
    DatasetTask,
    Query,
    hash_did,
    hash_qid,
    unhash_did,
)

_SKIP: Final = "correct the line, or build with --set input.malformed_lines=skip, which records it in a file"
_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


class _OpenQuery(Query):
    model_config = ConfigDict(extra="allow")


class _OpenCandidate(Candidate):
    model_config = ConfigDict(extra="allow")


class Checker:
    def __init__(
        self, layout: Layout, *, store: ImageStore, images: bool, decode: bool, max_examples: int, meter: Meter
    ) -> None:
        self.layout, self.meter = layout, meter
        self.findings = Findings(layout.root, max_examples)
        self.images, self.decode = images or decode, decode
        self.store = store
        self.pools: dict[Path, NDArray[np.int64]] = {}
        self.instructions: InstructionTable | None = None

    def run(self) -> int:
        """Returns how many files were read."""
        files = 0
        self._check_instructions()
        for pool in self.layout.pool_files():
            self.meter.note = pool.name
            self.pools[pool.path] = self._check_pool(pool)
            files += 1
        everything = np.unique(np.concatenate([np.empty(0, np.int64), *self.pools.values()]))
        for query_file in self.layout.query_files():
            self.meter.note = query_file.path.name
            self._check_queries(query_file, everything)
            files += 1
        self._check_absent()
        return files

    # Pools

    def _check_pool(self, pool: PoolFile) -> NDArray[np.int64]:
        hashes, lines = array("q"), array("i")
        extra: Counter[str] = Counter()
        checked: set[str] = set()
        for line, raw, row in scan_rows(pool.path, _OpenCandidate):
            self.meter.advance(len(raw) + 1)
            if isinstance(row, list):
                self._malformed(pool.path, row)
                continue
            extra.update([*(row.model_extra or {})])
            hashes.append(hash_did(row.did))
            lines.append(line)
            self._content(pool.path, line, row.did, row.defects)
            self._image(pool.path, line, row.img_path, checked)
        self._unknown_keys(pool.path, extra)
        dids = np.array(hashes, np.int64)
        order = np.argsort(dids, kind="stable")
        for at in np.flatnonzero(dids[order][1:] == dids[order][:-1]):
            first, second = lines[order[at]], lines[order[at + 1]]
            message = f"did {unhash_did(int(dids[order[at]]))} again, first in line {first}"
            self.findings.add(_ERROR, "duplicate_did", pool.path, message, DOWNLOAD, line=second)
        result: NDArray[np.int64] = np.unique(dids)
        return result

    # Queries

    def _check_queries(self, file: QueryFile, everything: NDArray[np.int64]) -> None:
        extra: Counter[str] = Counter()
        seen: dict[int, int] = {}
        repeated = 0
        checked: set[str] = set()
        positives: dict[DatasetTask, Positives] = {}
        by_qid: dict[str, tuple[str, ...]] = {}
        for line, raw, row in scan_rows(file.path, _OpenQuery):
            self.meter.advance(len(raw) + 1)
            if isinstance(row, list):
                self._malformed(file.path, row)
                continue
            extra.update([*(row.model_extra or {})])
            digest = zlib.crc32(row.model_dump_json().encode())
            hashed = hash_qid(row.qid)
            if hashed in seen:
                if seen[hashed] == digest and file.split.startswith("union"):
                    repeated += 1
                else:
                    message = f"qid {row.qid} again" + ("" if seen[hashed] == digest else ", with other content")
                    self.findings.add(_ERROR, "duplicate_qid", file.path, message, DOWNLOAD, line=line)
                continue
            seen[hashed] = digest
            by_qid[row.qid] = row.pos_cand_list
            self._belongs(file, line, row)
            self._content(file.path, line, row.qid, row.defects)
            self._image(file.path, line, row.query_img_path, checked)
            self._instructed(file.path, line, row)
            positives.setdefault(row.dataset_task, Positives()).add(row, line)
        if repeated:
            message = f"{repeated:,} rows repeat earlier ones, as up-sampling makes them"
            self.findings.add(
                _NOTE, "repeated_rows", file.path, message, "none needed: a repeated query is asked once", count=repeated
            )
        self._unknown_keys(file.path, extra)
        for task, collected in positives.items():
            check_positives(self.findings, self.layout, self.pools, Asked(file, task, collected), everything)
        self._check_qrels(file, by_qid)

    def _belongs(self, file: QueryFile, line: int, row: Query) -> None:
        task = row.dataset_task
        wrong = (file.dataset is not None and task.dataset != file.dataset) or (
            file.dataset_task is not None and task != file.dataset_task
        )
        if wrong or task not in DATASET_TASKS:
            message = f"qid {row.qid} with task_id {row.task_id} is {task.name}, which does not belong in this file"
            self.findings.add(_ERROR, "wrong_file", file.path, message, DOWNLOAD, line=line)

    def _check_qrels(self, file: QueryFile, by_qid: dict[str, tuple[str, ...]]) -> None:
        path = self.layout.qrels(file)
        if path is None or not path.is_file():
            return
        try:
            relevant = load_relevant(path)
        except MalformedInput as error:
            self._malformed(path, error.problems)
            return
        remedy = "the query file and its qrels are of different downloads; fetch both again"
        for qid, dids in by_qid.items():
            if qid not in relevant:
                self.findings.add(_ERROR, "qrels_lack_query", path, f"no line for {qid} of {file.path.name}", remedy)
            elif relevant[qid].dids != dids:
                message = f"{qid} has {_few(relevant[qid].dids)} here and {_few(dids)} in {file.path.name}"
                self.findings.add(_ERROR, "qrels_differ", path, message, remedy)
        if surplus := [qid for qid in relevant if qid not in by_qid]:
            message = f"{len(surplus):,} qids that {file.path.name} lacks: {_few(surplus)}"
            self.findings.add(
                _NOTE, "qrels_of_other_queries", path, message, "none needed: they are ignored", count=len(surplus)
            )

    # Rows

    def _malformed(self, path: Path, problems: list[LineProblem]) -> None:
        for problem in problems:
            self.findings.add(_ERROR, "malformed_line", path, problem.finding, _SKIP, line=problem.line)

    def _content(self, path: Path, line: int, identifier: str, defects: tuple[str, ...]) -> None:
        for defect in defects:
            message = (
                f"{identifier}: its modality needs {'text' if defect == 'empty_text' else 'an image path'}, and there is none"
            )
            self.findings.add(_WARNING, defect, path, message, "none needed: it becomes a recorded rejection", line=line)

    def _unknown_keys(self, path: Path, extra: Counter[str]) -> None:
        for key, count in sorted(extra.items()):
            message = f"key {key!r} in {count:,} rows is not M-BEIR's and is not read"
            self.findings.add(_NOTE, "unknown_key", path, message, "none needed", count=count)

    def _image(self, path: Path, line: int, image: str | None, checked: set[str]) -> None:
        if not self.images or not image or image in checked:
            return
        checked.add(image)
        try:
            self.store.open(image) if self.decode else self.store.resolve(image)
        except ImageProblem as problem:
            message = f"{image}: {problem.detail}"
            self.findings.add(_ERROR, problem.reason, path, message, problem.remedy, line=line)

    # Instructions, qrels and pools beside the queries

    def _check_instructions(self) -> None:
        path = self.layout.instructions
        try:
            self.instructions = InstructionTable.load(path)
        except MalformedInput as error:
            self._malformed(path, error.problems)
        except InputError as error:
            self.findings.add(_ERROR, "no_instructions", path, error.problem, error.remedy)

    def _instructed(self, path: Path, line: int, row: Query) -> None:
        if self.instructions is None:
            return
        key = (row.dataset_id, row.query_modality, TASK_MODALITIES[row.task_id][1])
        if key not in self.instructions:
            message = f"{row.qid}: no instruction for {row.dataset_task.name} ({key[1]} → {key[2]})"
            remedy = f"add the row to {self.layout.instructions.name}"
            self.findings.add(_ERROR, "no_instruction", path, message, remedy, line=line)

    def _check_absent(self) -> None:
        for file in self.layout.query_files():
            qrels = self.layout.qrels(file)
            if qrels is not None and not qrels.is_file():
                remedy = "fetch it, if this split is to be scored"
                self.findings.add(
                    _WARNING, "no_qrels", file.path, f"its qrels {self.layout.relative(qrels)} are missing", remedy
                )
            for path in self._pools_needed(file):
                if path not in self.pools:
                    remedy = f"{self._pool_remedy(file)}; queries without a pool cannot be verified or scored"
                    message = f"its candidate pool {self.layout.relative(path)} is missing"
                    self.findings.add(_WARNING, "no_pool", file.path, message, remedy)

    def _pool_remedy(self, file: QueryFile) -> str:
        if file.dataset is None:
            return f"`mbeir-cot mbeir fetch {self.layout.root} --union --no-images`"
        return self.layout.fetch_remedy(file.dataset, file.split)

    def _pools_needed(self, file: QueryFile) -> list[Path]:
        split = file.split
        if file.dataset_task is not None:
            local = self.layout.local_pool(file.dataset_task, split)
            return [local] if local is not None else []
        if file.dataset == "mscoco" or file.dataset is None:  # MSCOCO's training candidates are in the global pool only
            return [self.layout.global_pool(split)]
        if self.layout.global_pool(split) in self.pools:
            return []
        tasks = [task for task in DATASET_TASKS if task.dataset == file.dataset]
        return [path for task in tasks if (path := self.layout.local_pool(task, split)) is not None]


def check(
    root: Path,
    *,
    images: bool = True,
    decode: bool = False,
    max_examples: int = 5,
    image_roots: Sequence[Path] = (),
) -> CheckResult:
    """Reads the whole directory and reports everything that is wrong or unusual.

    Args:
        images: also check whether every image exists inside the root.
        decode: also decode every image (slow; finds damaged files, bombs, and shapes that image processors refuse).
        image_roots: further directories that links below `root` may lead into.
        max_examples: examples kept per kind of problem and file; counts are always exact.
    """
    layout = Layout.open(root)
    paths = [file.path for file in layout.pool_files()] + [file.path for file in layout.query_files()]
    with Meter("checking", sum(path.stat().st_size for path in paths)) as meter:
        store = plain_store(root, image_roots, max_ratio=MAX_RATIO)
        checker = Checker(layout, store=store, images=images, decode=decode, max_examples=max_examples, meter=meter)
        files = checker.run()
    return CheckResult(root=str(root), files=files, findings=list(checker.findings))


def _few(identifiers: tuple[str, ...] | list[str]) -> str:
    return ", ".join(identifiers[:5]) + (", …" if len(identifiers) > 5 else "")
