"""Embeds candidate pools and query files into UniIR's layout: fp16 vectors beside int64 ids, part by part.

A part that is on disk is not computed again, so an interrupted job resumes. Each part is written whole or not at all. Parts are
independent of each other, so the result does not depend on who computes them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.files.array_file import allocate_array
from pipeline.files.durable import sync
from pipeline.mbeir.image_store import ImageProblem, ImageStore
from pipeline.mbeir.instructions import Choice, InstructionTable, SeededChoice
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from schemas.content import ContentPart
from schemas.errors import InputError
from schemas.mbeir import DatasetTask, Query, Split, hash_did, hash_qid, unhash_did, unhash_qid
from trainer.data.encoding import EncodedSequence, SequenceEncoder
from trainer.data.exclusions import Exclusion, load_exclusions, refuse_most, save_exclusions
from trainer.data.unreadable import refuse
from trainer.embedding.files import exclusions_path, ids_path, open_array, refuse_not_finite
from trainer.embedding.query_embedding import QueryEmbedding

logger = logging.getLogger(__name__)

PART_ROWS: Final = 8_192


class Range(NamedTuple):
    """A range of a pool's candidates."""

    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.start:010d}-{self.stop:010d}.npy"


class PoolPart(NamedTuple):
    """Vectors (n, dim), unit length, fp16, of a range's candidates except those left out (index in the range -> why)."""

    vectors: NDArray[np.float16]
    left_out: dict[int, Exclusion]


def embed_pool(
    out: Path,
    embed: Callable[[list[Range]], Iterator[tuple[Range, PoolPart]]],
    ids: NDArray[np.int64],
    advance: Callable[[int], None] = lambda rows: None,
    *,
    part_rows: int = PART_ROWS,
) -> list[Exclusion]:
    """Writes `out`, the ids beside it, and the list of candidates that were left out, which it returns.

    embed: yields the vectors of ranges, in any order. ids: of all candidates, in the pool's order.
    Raises InputError if no candidate can be read, or a vector is not finite.
    """
    if out.is_file() and ids_path(out).is_file():
        advance(len(ids))
        return load_exclusions(exclusions_path(out))
    parts = out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    ranges = [Range(start, min(start + part_rows, len(ids))) for start in range(0, len(ids), part_rows)]
    missing = [span for span in ranges if not (parts / span.file).is_file()]
    logger.info("%s: %d of %d parts to embed", out, len(missing), len(ranges))
    advance(len(ids) - sum(span.stop - span.start for span in missing))
    for span, part in embed(missing):
        of_part = np.delete(ids[span.start : span.stop], sorted(part.left_out))
        _check_finite(str(out), part.vectors, of_part, unhash_did)
        if part.left_out:
            listed = [part.left_out[index] for index in sorted(part.left_out)]
            save_exclusions((parts / span.file).with_suffix(".json"), listed)
        write_array(parts / span.file, part.vectors)
        logger.debug("%s: candidates %d to %d", out, span.start, span.stop)
        advance(span.stop - span.start)
    left_out = [one for span in ranges for one in load_exclusions((parts / span.file).with_suffix(".json"))]
    if left_out and len(left_out) == len(ids):
        shutil.rmtree(parts)  # so that they are looked at again
        refuse_most(f"the candidates of {out}", left_out, len(ids))
    without = np.array([hash_did(one.name) for one in left_out], np.int64)
    _join([parts / span.file for span in ranges], out)
    write_array(ids_path(out), np.asarray(ids[~np.isin(ids, without)], np.int64))
    if left_out:
        save_exclusions(exclusions_path(out), left_out)
    shutil.rmtree(parts)
    return left_out


class StudentQuery(NamedTuple):
    """A query as the student sees it. `image`: its path below the root. `parts`: the whole query if it has several images."""

    qid: str
    instruction: str
    text: str | None
    image: str | None
    parts: tuple[ContentPart, ...] = ()

    def encode(self, encoder: SequenceEncoder, images: ImageStore, written: str = "") -> EncodedSequence:
        try:
            if self.parts:
                return encoder.encode_parts(self.qid, self.instruction, self.parts, images, written=written)
            picture = encoder.prepare(images.open(self.image)) if self.image else None
        except ImageProblem as problem:
            raise refuse("query", self.qid, problem) from problem
        return encoder.encode_query(self.qid, self.instruction, self.text, picture, written=written)


class QueryFile:
    """The queries of one dataset-task with their instructions."""

    def __init__(self, layout: Layout, task: DatasetTask, split: Split, choice: Choice | None = None) -> None:
        self.task, self.split = task, split
        self.queries: list[Query] = [query for _, query in read_queries(layout.queries(split, task))]
        self._instructions = InstructionTable.load(layout.instructions)
        self._choice = choice or SeededChoice()

    def encode(self, encoder: SequenceEncoder, images: ImageStore) -> list[EncodedSequence]:
        """The sequences of all queries, with their images in memory."""
        return [self.student_query(query).encode(encoder, images) for query in self.queries]

    def student_query(self, query: Query) -> StudentQuery:
        image = query.query_img_path if query.query_modality.has_image else None
        return StudentQuery(query.qid, self.instruction(query), query.query_txt, image or None)

    def instruction(self, query: Query) -> str:
        return self._instructions.for_query(query, self._choice, split=self.split)


def save_queries(
    embeddings: Sequence[QueryEmbedding], file: QueryFile, out: Path, unreadable: Sequence[Exclusion] = ()
) -> None:
    """UniIR's files for one query file, and the list of its queries that could not be read.

    Raises InputError if no query could be.
    """
    if not embeddings:
        raise InputError(
            f"no query of {file.task.name} can be read: {unreadable[0].image}: {unreadable[0].detail}, and so on",
            "is the disk with the images mounted? (data.mbeir)",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    exclusions_path(out).unlink(missing_ok=True)
    if unreadable:
        save_exclusions(exclusions_path(out), unreadable)
    vectors_QD = torch.stack([one.vector for one in embeddings]).numpy().astype(np.float16)
    ids = np.array([hash_qid(query.qid) for query in file.queries], np.int64)
    _check_finite(str(out), vectors_QD, ids, unhash_qid)
    write_array(out, vectors_QD)
    write_array(ids_path(out), ids)


def _check_finite(where: str, vectors: NDArray[np.float16], ids: NDArray[np.int64], name_of: Callable[[int], str]) -> None:
    indices = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(indices):
        refuse_not_finite(where, indices, ids, name_of)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Whole or not at all."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    sync(new)
    new.replace(path)


def _join(parts: list[Path], out: Path) -> None:
    """Concatenates parts on disk, with one in memory at a time."""
    opened = (open_array(part, f"the part {part}", f"remove it and run the same command again: {part}") for part in parts)
    arrays = [array for array in opened if len(array)]
    shape = (sum(len(array) for array in arrays), arrays[0].shape[1])
    new = out.with_suffix(".new")
    joined = allocate_array(new, np.float16, shape)
    start = 0
    for array in arrays:
        joined[start : start + len(array)] = array
        start += len(array)
    joined.flush()
    del joined
    sync(new)
    new.replace(out)
