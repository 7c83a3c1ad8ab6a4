"""Candidates whose image could not be read when their pool was embedded, and can be by now: a disk is mounted, a file repaired.

Files of a finished pool are kept, so without another look such a candidate would stay away from every later evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files.array_file import allocate_array
from pipeline.files.durable import sync
from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.mbeir import hash_did
from trainer.data.exclusions import Exclusion, refuse_most, save_exclusions
from trainer.embedding.embed import PoolPart, Range, embed_pool, write_array
from trainer.embedding.files import exclusions_path, ids_path, load_embeddings

logger = logging.getLogger(__name__)

Embed = Callable[[list[Range]], Iterator[tuple[Range, PoolPart]]]


def readable(exclusions: Sequence[Exclusion], images: ImageStore) -> list[Exclusion]:
    """Those whose image can be read now."""
    return [one for one in exclusions if _can_be_read(images, one.image)]


def _can_be_read(images: ImageStore, path: str) -> bool:
    try:
        images.open(path)
    except ImageProblem:
        return False
    return True


def embed_whole_pool(
    out: Path,
    embed: Embed,
    ids: NDArray[np.int64],
    images: ImageStore,
    advance: Callable[[int], None],
    *,
    most: float = 1.0,
) -> list[Exclusion]:
    """`embed_pool`, and whatever a finished pool lacks and can be read now. Returns what is left out still.

    Raises InputError if that is more than the share `most` of the pool.
    """
    left_out = _complete(out, embed, ids, images, embed_pool(out, embed, ids, advance))
    if left_out:
        refuse_most(f"the candidates of {out}", left_out, len(ids), most)
    return left_out


def _complete(
    out: Path, embed: Embed, ids: NDArray[np.int64], images: ImageStore, left_out: list[Exclusion]
) -> list[Exclusion]:
    mended = readable(left_out, images)
    if not mended:
        return left_out
    logger.info("%s: %d candidates can be read now", out, len(mended))
    places = np.flatnonzero(np.isin(ids, [hash_did(one.name) for one in mended])).tolist()
    parts = {span.start: part for span, part in embed([Range(place, place + 1) for place in places])}
    new = {int(ids[place]): part.vectors[0] for place, part in parts.items() if not part.left_out}
    _insert(out, new, ids)
    still = [one for one in left_out if hash_did(one.name) not in new]
    exclusions_path(out).unlink()
    if still:
        save_exclusions(exclusions_path(out), still)
    return still


def _insert(out: Path, new: dict[int, NDArray[np.float16]], ids: NDArray[np.int64]) -> None:
    """Vectors into a pool's files. `ids`: of all candidates, in the pool's order."""
    read = load_embeddings(out)
    old, old_ids = read.vectors, read.ids
    there = np.asarray(ids[np.isin(ids, [*old_ids.tolist(), *new])], np.int64)
    added = np.isin(there, list(new))
    temporary = out.with_suffix(".new")
    whole = allocate_array(temporary, np.float16, (len(there), old.shape[1]))
    whole[~added] = old
    whole[added] = np.stack([new[number] for number in there[added].tolist()])
    whole.flush()
    del whole, old, read
    sync(temporary)
    ids_path(out).unlink()  # vectors without ids are embedded again: a kill between the two is noticed
    temporary.replace(out)
    write_array(ids_path(out), there)
