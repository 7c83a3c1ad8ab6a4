"""Embeds candidate pools and query files into UniIR's layout: fp16 vectors beside int64 ids, part by part.

A part that is on disk is not computed again, so an interrupted job goes on. Each part is written whole or not at all. Parts
are independent of each other; the result does not depend on who computes them.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.durable import sync
from pipeline.mbeir.images import ImageStore
from pipeline.mbeir.instructions import Choice, InstructionTable, SeededChoice, candidate_text
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from schemas.mbeir import Candidate, DatasetTask, Query, hash_qid
from schemas.training import RouteChoice
from trainer.adaptive import AdaptiveEmbedder, Embedded
from trainer.embedder import Embedder
from trainer.rows import Chunk, Row, RowEncoder
from trainer.uniir import Split, ids_path

PART_ROWS: Final = 8_192
WINDOW: Final = 1_024
"""Queries whose images are held at once."""
AHEAD: Final = 4
"""Groups of candidates that are prepared before the model asks for them: what a worker holds depends on nothing else."""


class Range(NamedTuple):
    """Rows of a pool."""

    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.start:010d}-{self.stop:010d}.npy"


class QueryCosts(NamedTuple):
    """What embedding a query file took, and how its queries were routed."""

    queries: int
    reasoned: int
    cut: int
    """Traces that did not end by themselves."""
    tokens: int
    seconds: float
    p50_s: float
    p95_s: float

    @property
    def think_rate(self) -> float:
        return self.reasoned / self.queries if self.queries else 0.0

    @property
    def rate(self) -> float:
        """Queries per second."""
        return self.queries / self.seconds if self.seconds else 0.0


class PoolEmbedder:
    """Embeds candidates; picklable pieces are made in the process that uses it."""

    def __init__(self, embedder: Embedder, images: ImageStore, *, rows: int, max_chars: int) -> None:
        self.embedder, self.encoder = embedder.eval(), embedder.encoder()
        self.images = images
        self.rows, self.max_chars = rows, max_chars

    @torch.inference_mode()
    def vectors(self, candidates: list[Candidate]) -> NDArray[np.float16]:
        """(n, dim), unit length, fp16."""
        found: NDArray[np.float16] | None = None
        for places, chunk in self._prepared(candidates):
            vectors, _ = self.embedder(chunk.to(self.embedder.device), labelled=False)
            if found is None:
                found = np.zeros((len(candidates), vectors.shape[1]), np.float16)
            found[np.array(places)[chunk.places.numpy()]] = vectors.cpu().numpy().astype(np.float16)
        return found if found is not None else np.zeros((0, 0), np.float16)

    def _prepared(self, candidates: list[Candidate]) -> Iterator[tuple[list[int], Chunk]]:
        """(places, chunk): a thread decodes and tokenises the next groups while the model works.

        One thread, for tokenizers are not to be used by several at once. Rows are grouped by what is known before an image is
        opened, in the order of `RowEncoder.chunks`.
        """
        order = sorted(range(len(candidates)), key=lambda i: (_shows(candidates[i]), len(self._text(candidates[i])), i))
        groups = iter([order[start : start + self.rows] for start in range(0, len(order), self.rows)])
        waiting: deque[tuple[list[int], Future[list[Chunk]]]] = deque()
        thread = ThreadPoolExecutor(1, thread_name_prefix="candidates")
        try:
            while True:
                while len(waiting) < AHEAD and (group := next(groups, None)) is not None:
                    waiting.append((group, thread.submit(self._chunks, [candidates[i] for i in group])))
                if not waiting:
                    return
                group, future = waiting.popleft()
                for chunk in future.result():
                    yield group, chunk
        finally:
            thread.shutdown(cancel_futures=True)

    def _chunks(self, candidates: list[Candidate]) -> list[Chunk]:
        return self.encoder.chunks([self._row(candidate) for candidate in candidates], self.rows, 1 << 20)

    def _text(self, candidate: Candidate) -> str:
        return candidate_text(candidate.txt)[: self.max_chars] if candidate.modality.has_text else ""

    def _row(self, candidate: Candidate) -> Row:
        picture = self.images.open(candidate.img_path or "") if _shows(candidate) else None
        return self.encoder.candidate(candidate.did, self._text(candidate), picture)


def _shows(candidate: Candidate) -> bool:
    return bool(candidate.img_path) and candidate.modality.has_image


def embed_pool(
    out: Path,
    embed: Callable[[list[Range]], Iterator[tuple[Range, NDArray[np.float16]]]],
    ids: NDArray[np.int64],
    advance: Callable[[int], None] = lambda rows: None,
    *,
    part_rows: int = PART_ROWS,
) -> None:
    """Writes `out` and `ids` beside it. `embed` gives the vectors of ranges of rows, in any order."""
    if out.is_file() and ids_path(out).is_file():
        advance(len(ids))
        return
    parts = out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    ranges = [Range(start, min(start + part_rows, len(ids))) for start in range(0, len(ids), part_rows)]
    owed = [one for one in ranges if not (parts / one.file).is_file()]
    advance(len(ids) - sum(one.stop - one.start for one in owed))
    for one, vectors in embed(owed):
        _write(parts / one.file, vectors)
        advance(len(vectors))
    _join([parts / one.file for one in ranges], out)
    _write(ids_path(out), np.asarray(ids, np.int64))
    shutil.rmtree(parts)


class QueryFile:
    """The queries of one dataset-task as rows, with their instructions."""

    def __init__(self, layout: Layout, task: DatasetTask, split: Split, choice: Choice | None = None) -> None:
        self.task, self.split = task, split
        self.queries: list[Query] = [query for _, query in read_queries(layout.queries(split, task))]
        self._instructions = InstructionTable.load(layout.instructions)
        self._choice = choice or SeededChoice()

    def rows(self, encoder: RowEncoder, images: ImageStore, start: int = 0, stop: int | None = None) -> list[Row]:
        """Of the queries from `start` to `stop`; their images are decoded and held."""
        return [self._row(query, encoder, images) for query in self.queries[start:stop]]

    def windows(self, encoder: RowEncoder, images: ImageStore, size: int = WINDOW) -> Iterator[tuple[int, list[Row]]]:
        """(index of the first, rows) of stretches of the file: no more images are held than a stretch has."""
        for start in range(0, len(self.queries), size):
            yield start, self.rows(encoder, images, start, start + size)

    def instruction(self, query: Query) -> str:
        task = query.dataset_task
        return self._instructions.choose(
            query.dataset_id, task.query_modality, task.cand_modality, self._choice, split=self.split, qid=query.qid
        )

    def _row(self, query: Query, encoder: RowEncoder, images: ImageStore) -> Row:
        shown = query.query_modality.has_image and bool(query.query_img_path)
        picture = images.open(query.query_img_path or "") if shown else None
        return encoder.query(query.qid, self.instruction(query), query.query_txt, picture)


def embed_queries(
    adaptive: AdaptiveEmbedder,
    file: QueryFile,
    images: ImageStore,
    *,
    route: RouteChoice,
    given: list[bool] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[list[Embedded], QueryCosts]:
    """All queries of a file, and what it took (reading and encoding of text and images included)."""
    began = time.perf_counter()
    found: list[Embedded] = []
    for start, rows in file.windows(adaptive.encoder, images):
        flags = given[start : start + len(rows)] if given is not None else None
        found += adaptive.embed(rows, route=route, given=flags)
        advance(len(rows))
    took = time.perf_counter() - began
    seconds = np.array([one.seconds for one in found] or [0.0])
    return found, QueryCosts(
        len(found),
        sum(one.reasoned for one in found),
        sum(not one.ended for one in found),
        sum(one.tokens for one in found),
        took,
        float(np.percentile(seconds, 50)),
        float(np.percentile(seconds, 95)),
    )


def save_queries(found: list[Embedded], file: QueryFile, out: Path) -> None:
    """UniIR's files for one query file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, torch.stack([one.vector for one in found]).numpy().astype(np.float16))
    _write(ids_path(out), np.array([hash_qid(query.qid) for query in file.queries], np.int64))


def _write(path: Path, array: NDArray[Any]) -> None:
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    sync(new)
    new.replace(path)


def _join(parts: list[Path], out: Path) -> None:
    """Concatenates parts on disk, holding one at a time."""
    arrays = [np.load(part, mmap_mode="r", allow_pickle=False) for part in parts]
    shape = (sum(len(array) for array in arrays), arrays[0].shape[1])
    new = out.with_suffix(".new")
    joined = np.lib.format.open_memmap(new, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call]
    start = 0
    for array in arrays:
        joined[start : start + len(array)] = array
        start += len(array)
    joined.flush()
    del joined
    sync(new)
    new.replace(out)
