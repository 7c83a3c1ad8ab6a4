"""Embeddings on disk, in UniIR's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, unhash_did
from trainer.embedding.vectors import Vectors, blocks, normalised

Split = Literal["val", "test"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of shape (n, dim), memory-mapped, and UniIR's int64 ids of shape (n,)."""

    vectors: NDArray[np.floating]
    ids: NDArray[np.int64]
    path: Path
    name_of: Callable[[int], str]
    """A did or a qid, from its id."""

    def blocks(self) -> Iterator[Vectors]:
        """Normalised; raises InputError after the last where vectors are not finite."""
        return blocks(self.vectors, wrong=lambda rows: not_finite(str(self.path), rows, self.ids, self.name_of))

    def normalised(self) -> Vectors:
        """All at once; raises InputError where some are not finite."""
        found = list(self.blocks())
        return np.concatenate(found) if found else normalised(self.vectors)


class EmbeddingFiles:
    """Where UniIR keeps embeddings below its directory, for one experiment (`suffix`)."""

    def __init__(self, directory: Path, suffix: str) -> None:
        self._embed = directory / "embed" / suffix
        self.runs = directory / "retrieval_results" / suffix / "run_files"
        self.tables = directory / "retrieval_results" / suffix / "final_tsv"

    def queries(self, task: DatasetTask, split: Split) -> Path:
        return self._embed / split / f"mbeir_{task.name}_{split}_embed.npy"

    def candidates(self, task: DatasetTask, split: Split) -> Path:
        return self._embed / "cand_pool" / f"mbeir_{pool_name(task, split)}_cand_pool_embed.npy"

    def available(self, split: Split) -> list[DatasetTask]:
        """Tasks with query embeddings, in UniIR's order."""
        return [task for task in DATASET_TASKS if self.queries(task, split).is_file()]


def pool_name(task: DatasetTask, split: Split) -> str:
    """MSCOCO's local pools are per split."""
    return f"{task.name}_{split}" if task.dataset == "mscoco" else task.name


def ids_path(embeddings: Path) -> Path:
    return embeddings.with_name(embeddings.name.removesuffix("_embed.npy") + "_ids.npy")


def load_embeddings(path: Path, name_of: Callable[[int], str] = unhash_did) -> Embeddings:
    """Raises InputError for files that are missing, of the wrong shape, or do not belong together."""
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        ids = np.load(ids_path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the embeddings {path} ({error})", "embed this pool or these queries again") from error
    if vectors.ndim != 2 or ids.shape != (len(vectors),) or ids.dtype != np.int64:
        raise InputError(
            f"{path}: {vectors.shape} vectors beside {ids.shape} ids of {ids.dtype}", "they must be (n, dim) and (n,) int64"
        )
    if len(np.unique(ids)) != len(ids):
        raise InputError(f"{ids_path(path)}: an id stands twice", "embed this pool or these queries again")
    return Embeddings(vectors, ids, path, name_of)


def not_finite(where: str, rows: NDArray[np.int64], ids: NDArray[np.int64], name_of: Callable[[int], str]) -> NoReturn:
    """Numbers are never computed from such vectors: a NaN is nobody's neighbour, and would pass for a miss."""
    named = ", ".join(name_of(int(ids[row])) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    raise InputError(
        f"{where}: {len(rows):,} of {len(ids):,} vectors are not finite (NaN or inf): {named}",
        "embed them again; where a model gives such vectors, it diverged or needs another model.dtype",
    )
