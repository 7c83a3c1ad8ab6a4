"""Embeddings on disk, in UniIR's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.files.durable import replace_text
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, EvaluationSplit, unhash_did
from schemas.os_errors import refused_by_system
from trainer.embedding.vectors import Vectors, normalise, read_blocks


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of shape (n, dim), memory-mapped, and UniIR's int64 ids of shape (n,)."""

    vectors: NDArray[np.floating]
    ids: NDArray[np.int64]
    path: Path
    name_of: Callable[[int], str]
    """The did or qid of an id."""

    def read_blocks(self) -> Iterator[Vectors]:
        """Normalised. Raises InputError after the last block if vectors are not finite."""
        return read_blocks(
            self.vectors, wrong=lambda indices: refuse_not_finite(str(self.path), indices, self.ids, self.name_of)
        )

    def read_all(self) -> Vectors:
        """All in one array. Raises InputError if some are not finite."""
        parts = list(self.read_blocks())
        return np.concatenate(parts) if parts else normalise(self.vectors)


class EmbeddingFiles:
    """UniIR's paths below its directory, for one experiment (`suffix`)."""

    def __init__(self, directory: Path, suffix: str) -> None:
        self._embed = directory / "embed" / suffix
        self.runs = directory / "retrieval_results" / suffix / "run_files"
        self.tables = directory / "retrieval_results" / suffix / "final_tsv"

    def queries(self, task: DatasetTask, split: EvaluationSplit) -> Path:
        return self._embed / split / f"mbeir_{task.name}_{split}_embed.npy"

    def candidates(self, task: DatasetTask, split: EvaluationSplit) -> Path:
        return self._embed / "cand_pool" / f"mbeir_{pool_name(task, split)}_cand_pool_embed.npy"

    def available(self, split: EvaluationSplit) -> list[DatasetTask]:
        """Tasks with query embeddings, in UniIR's order."""
        return [task for task in DATASET_TASKS if self.queries(task, split).is_file()]


def pool_name(task: DatasetTask, split: EvaluationSplit) -> str:
    """The name of a local pool in UniIR's files; MSCOCO has one per split."""
    return f"{task.name}_{split}" if task.dataset == "mscoco" else task.name


def ids_path(embeddings: Path) -> Path:
    return embeddings.with_name(embeddings.name.removesuffix("_embed.npy") + "_ids.npy")


def exclusions_path(embeddings: Path) -> Path:
    """Lists the candidates or queries that have no embedding because their image cannot be read."""
    return embeddings.with_name(embeddings.name.removesuffix("_embed.npy") + "_unreadable.json")


def empty_unless_made_by(directory: Path, made_by: Mapping[str, Any]) -> None:
    """Removes everything in the directory if it was made from something else, and notes there what it is made from now."""
    marker, text = directory / "made_by.json", json.dumps(made_by, sort_keys=True)
    if marker.is_file() and marker.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(marker, text)


def load_embeddings(path: Path, name_of: Callable[[int], str] = unhash_did) -> Embeddings:
    """Raises InputError for files that are missing, have the wrong shape, or do not belong together."""
    vectors, ids = (open_array(file, f"the embeddings {file}", _again(path)) for file in (path, ids_path(path)))
    if vectors.ndim != 2 or ids.shape != (len(vectors),) or ids.dtype != np.int64:
        raise InputError(
            f"{path}: {vectors.shape} vectors beside {ids.shape} ids of {ids.dtype}, not (n, dim) and (n,) int64", _again(path)
        )
    if len(np.unique(ids)) != len(ids):
        raise InputError(f"{ids_path(path)}: an id occurs twice", _again(path))
    return Embeddings(vectors, ids, path, name_of)


DAMAGED = (ValueError, EOFError, BadZipFile)
"""What numpy raises for a file that is empty, cut off, or of something else."""


def open_array(path: Path, what: str, remedy: str) -> NDArray[Any]:
    """A file of numpy's, memory-mapped. what: names it in messages. remedy: for one that is missing or damaged.

    Raises InputError, by the system's reason if it refuses.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, *DAMAGED) as error:
        if (refused := refused_by_system(error)) is not None:
            raise InputError(f"cannot read {what}: {refused.cause}", refused.remedy) from error
        raise InputError(f"cannot read {what} ({error})", remedy) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"cannot read {what} (an archive, not an array)", remedy)
    return array


def _again(path: Path) -> str:
    """`eval` embeds nothing that is there."""
    return f"remove {path} and run the command that made it again, such as `mbeir-cot eval`"


def refuse_not_finite(
    where: str, indices: NDArray[np.int64], ids: NDArray[np.int64], name_of: Callable[[int], str]
) -> NoReturn:
    """Such vectors are never scored: a NaN is no one's neighbour and would pass for a miss."""
    named = ", ".join(name_of(int(ids[i])) for i in indices[:5]) + (", …" if len(indices) > 5 else "")
    raise InputError(
        f"{where}: {len(indices):,} of {len(ids):,} vectors are not finite (NaN or inf): {named}",
        "embed them again; a model that gives such vectors has diverged or needs another model.dtype",
    )
