"""Embeds candidate pools and query files into UniIR's layout: fp16 vectors beside int64 ids, part by part.

A part that is on disk is not computed again, so an interrupted job goes on. Each part is written whole or not at all. Parts
are independent of each other; the result does not depend on who computes them.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.files.durable import sync
from pipeline.mbeir.images import ImageProblem, ImageStore
from pipeline.mbeir.instructions import Choice, InstructionTable, SeededChoice
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from schemas.errors import InputError
from schemas.mbeir import Candidate, DatasetTask, Query, hash_did, hash_qid, unhash_did, unhash_qid
from trainer.data.encoding import EncodedSequence, MicroBatch, SequenceEncoder, shows_image, text_of
from trainer.data.unreadable import LeftOut, load_list, refused, save_list
from trainer.embedding.adaptive import QueryEmbedding
from trainer.embedding.files import Split, ids_path, not_finite
from trainer.model.embedder import Embedder

PART_ROWS: Final = 8_192
AHEAD: Final = 4
"""Groups of candidates that are prepared before the model asks for them: what a worker holds depends on nothing else."""


class Range(NamedTuple):
    """Rows of a pool."""

    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.start:010d}-{self.stop:010d}.npy"


class PoolPart(NamedTuple):
    """Vectors (n, dim), unit length, fp16, of all candidates but those that were left out: index -> why."""

    vectors: NDArray[np.float16]
    left_out: dict[int, LeftOut]


class PoolEmbedder:
    """Embeds candidates; picklable pieces are made in the process that uses it."""

    def __init__(self, embedder: Embedder, images: ImageStore, *, rows: int, max_chars: int, skip: bool = False) -> None:
        """`skip`: leave candidates out whose images cannot be read, instead of refusing them."""
        self.embedder, self.encoder = embedder.eval(), embedder.encoder()
        self.images = images
        self.rows, self.max_chars, self.skip = rows, max_chars, skip

    @torch.inference_mode()
    def part(self, candidates: list[Candidate]) -> PoolPart:
        """Raises InputError for an image that cannot be read, unless such candidates are left out."""
        found: NDArray[np.float16] | None = None
        left_out: dict[int, LeftOut] = {}
        for made in self._prepared(candidates):
            left_out |= made.left_out
            for chunk in made.chunks:
                vectors, _ = self.embedder(chunk.to(self.embedder.device), labelled=False)
                if found is None:
                    found = np.zeros((len(candidates), vectors.shape[1]), np.float16)
                found[np.array(made.places)[chunk.places.numpy()]] = vectors.cpu().numpy().astype(np.float16)
        if found is None:
            return PoolPart(np.zeros((0, 0), np.float16), left_out)
        return PoolPart(np.delete(found, sorted(left_out), 0), left_out)

    def vectors(self, candidates: list[Candidate]) -> NDArray[np.float16]:
        """(n, dim), unit length, fp16."""
        return self.part(candidates).vectors

    def _prepared(self, candidates: list[Candidate]) -> Iterator[_Group]:
        """A thread decodes and tokenises the next groups while the model works.

        One thread, for tokenizers are not to be used by several at once. Rows are grouped by what is known before an image is
        opened, in the order of `RowEncoder.chunks`.
        """
        lengths = [len(text_of(candidate, self.max_chars)) for candidate in candidates]
        order = sorted(range(len(candidates)), key=lambda i: (shows_image(candidates[i]), lengths[i], i))
        groups = iter([order[start : start + self.rows] for start in range(0, len(order), self.rows)])
        waiting: deque[Future[_Group]] = deque()
        thread = ThreadPoolExecutor(1, thread_name_prefix="candidates")
        try:
            while True:
                while len(waiting) < AHEAD and (group := next(groups, None)) is not None:
                    waiting.append(thread.submit(self._group, candidates, group))
                if not waiting:
                    return
                made = waiting.popleft().result()
                yield made
        finally:
            thread.shutdown(cancel_futures=True)

    def _group(self, candidates: list[Candidate], places: list[int]) -> _Group:
        rows: dict[int, EncodedSequence] = {}
        left_out: dict[int, LeftOut] = {}
        for place in places:
            try:
                rows[place] = self.encoder.candidate_of(candidates[place], self.images, max_chars=self.max_chars, prepare=True)
            except ImageProblem as problem:
                if not self.skip:
                    raise refused("candidate", candidates[place].did, problem) from problem
                left_out[place] = LeftOut.of(candidates[place].did, problem)
        chunks = self.encoder.chunks(list(rows.values()), self.rows, 1 << 20) if rows else []
        return _Group(list(rows), chunks, left_out)


class _Group(NamedTuple):
    """Candidates that were prepared together. places: of the chunks' rows among all candidates."""

    places: list[int]
    chunks: list[MicroBatch]
    left_out: dict[int, LeftOut]


def embed_pool(
    out: Path,
    embed: Callable[[list[Range]], Iterator[tuple[Range, PoolPart]]],
    ids: NDArray[np.int64],
    advance: Callable[[int], None] = lambda rows: None,
    *,
    part_rows: int = PART_ROWS,
) -> list[LeftOut]:
    """Writes `out`, `ids` beside it, and the list of what was left out, which it returns.

    `embed` gives the vectors of ranges of rows, in any order.
    """
    if out.is_file() and ids_path(out).is_file():
        advance(len(ids))
        return load_list(left_out_path(out))
    parts = out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    ranges = [Range(start, min(start + part_rows, len(ids))) for start in range(0, len(ids), part_rows)]
    owed = [one for one in ranges if not (parts / one.file).is_file()]
    advance(len(ids) - sum(one.stop - one.start for one in owed))
    for one, part in embed(owed):
        kept = np.delete(ids[one.start : one.stop], sorted(part.left_out))
        _finite(str(out), part.vectors, kept, unhash_did)
        if part.left_out:
            found = [part.left_out[row] for row in sorted(part.left_out)]
            save_list((parts / one.file).with_suffix(".json"), found)
        _write(parts / one.file, part.vectors)
        advance(one.stop - one.start)
    left_out = [line for one in ranges for line in load_list((parts / one.file).with_suffix(".json"))]
    if left_out and len(left_out) == len(ids):
        raise InputError(
            f"{out}: no candidate of this pool can be read: {left_out[0].image}: {left_out[0].detail}, and so on",
            "is the disk with the images there? (data.mbeir)",
        )
    without = np.array([hash_did(line.name) for line in left_out], np.int64)
    _join([parts / one.file for one in ranges], out)
    _write(ids_path(out), np.asarray(ids[~np.isin(ids, without)], np.int64))
    if left_out:
        save_list(left_out_path(out), left_out)
    shutil.rmtree(parts)
    return left_out


def left_out_path(out: Path) -> Path:
    return out.with_name(out.name.removesuffix("_embed.npy") + "_unreadable.json")


class Asked(NamedTuple):
    """A query as the student is shown it. `image`: its path below the M-BEIR root."""

    qid: str
    instruction: str
    text: str | None
    image: str | None

    def row(self, encoder: SequenceEncoder, images: ImageStore, written: str = "") -> EncodedSequence:
        try:
            picture = encoder.prepared(images.open(self.image)) if self.image else None
        except ImageProblem as problem:
            raise refused("query", self.qid, problem) from problem
        return encoder.query(self.qid, self.instruction, self.text, picture, written=written)


class QueryFile:
    """The queries of one dataset-task as rows, with their instructions."""

    def __init__(self, layout: Layout, task: DatasetTask, split: Split, choice: Choice | None = None) -> None:
        self.task, self.split = task, split
        self.queries: list[Query] = [query for _, query in read_queries(layout.queries(split, task))]
        self._instructions = InstructionTable.load(layout.instructions)
        self._choice = choice or SeededChoice()

    def rows(self, encoder: SequenceEncoder, images: ImageStore) -> list[EncodedSequence]:
        """Of all queries; their images are decoded and held."""
        return [self.asked(query).row(encoder, images) for query in self.queries]

    def asked(self, query: Query) -> Asked:
        shown = query.query_modality.has_image and bool(query.query_img_path)
        return Asked(query.qid, self.instruction(query), query.query_txt, query.query_img_path if shown else None)

    def instruction(self, query: Query) -> str:
        return self._instructions.for_query(query, self._choice, split=self.split)


def save_queries(found: list[QueryEmbedding], file: QueryFile, out: Path) -> None:
    """UniIR's files for one query file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    vectors = torch.stack([one.vector for one in found]).numpy().astype(np.float16)
    ids = np.array([hash_qid(query.qid) for query in file.queries], np.int64)
    _finite(str(out), vectors, ids, unhash_qid)
    _write(out, vectors)
    _write(ids_path(out), ids)


def _finite(where: str, vectors: NDArray[np.float16], ids: NDArray[np.int64], name_of: Callable[[int], str]) -> None:
    rows = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(rows):
        not_finite(where, rows, ids, name_of)


def _write(path: Path, array: NDArray[Any]) -> None:
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    sync(new)
    new.replace(path)


def _join(parts: list[Path], out: Path) -> None:
    """Concatenates parts on disk, holding one at a time."""
    arrays = [array for part in parts if len(array := np.load(part, mmap_mode="r", allow_pickle=False))]
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
