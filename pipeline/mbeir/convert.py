"""A candidate pool file, converted once into a form that can be memory-mapped and searched.

    <cache>/pools/<file stem>-<digest>/
        data.arrow    the rows in file order (Arrow IPC, many small record batches). The order decides score ties, so it is
        kept. hashes.npy    UniIR's int64 hash of each did, in file order order.npy     argsort of the hashes (int32), for
        sorted look-ups meta.json     source, digest, row count; written last

An entry is keyed by the file's state (path, size, times, inode) and this converter's version. It is built in a temporary
directory beside its place and renamed; a lock keeps a second process from doing the same work, which then uses the finished
entry. A killed process leaves a temporary directory, which the next conversion removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.files.durable import sha256_file
from pipeline.mbeir.jsonl import MAX_LISTED, LinePolicy, LineProblem, MalformedInput, RejectsFile, read_rows
from schemas.errors import CotError, InputError
from schemas.mbeir import DID_HASH_BASE, Candidate
from schemas.os_errors import explained, refused_by_system

CONVERTER_VERSION: Final = 1
BATCH_ROWS: Final = 16_384
"""Rows of a record batch: small enough that a fetch touches little, large enough that a pool has few hundred."""

SCHEMA: Final = pa.schema(
    [
        pa.field("did", pa.string(), nullable=False),
        pa.field("txt", pa.string()),
        pa.field("img_path", pa.string()),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("src_content", pa.string()),
    ]
)


class PoolMeta(BaseModel):
    """What ``meta.json`` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    source: str
    size: int
    sha256: str
    rows: int
    rejected_lines: int


def entry_dir(path: Path, cache_dir: Path, policy: LinePolicy) -> Path:
    """The cache directory of a pool file as it is on disk now."""
    state = json.dumps([CONVERTER_VERSION, policy, *_file_state(path)]).encode()
    return cache_dir / "pools" / f"{path.stem}-{hashlib.sha256(state).hexdigest()[:16]}"


def converted(path: Path, cache_dir: Path, policy: LinePolicy = LinePolicy.STRICT) -> Path:
    """The entry of `path`, built if necessary. Raises InputError for problems of the file."""
    entry = entry_dir(path, cache_dir, policy)
    try:
        if read_meta(entry) is not None:
            return entry
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if read_meta(entry) is None:
                _build(path, entry, policy)
    except OSError as error:
        cause, remedy = explained(error)
        raise CotError(
            f"cannot convert {path} in the cache {cache_dir}: {cause}",
            f"{remedy} (a pool needs about the size of its file), or name another cache directory (MBEIR_COT_CACHE)",
        ) from error
    except NotImplementedError as error:  # raised by FileLock on a file system without locks
        raise CotError(
            f"the file system of the cache {cache_dir} has no locks", "name a cache on a local disk (MBEIR_COT_CACHE)"
        ) from error
    return entry


def read_meta(entry: Path) -> PoolMeta | None:
    """The entry's metadata; None if it is absent, unfinished, damaged or of another version, so that it is built again."""
    try:
        meta = PoolMeta.model_validate_json((entry / "meta.json").read_bytes())
        sizes = [(entry / name).stat().st_size for name in ("data.arrow", "hashes.npy", "order.npy")]
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    whole = sizes[1] >= meta.rows * 8 and sizes[2] >= meta.rows * 4 and sizes[0] > 0
    return meta if whole and meta.version == CONVERTER_VERSION else None


def _file_state(path: Path) -> tuple[Any, ...]:
    try:
        stat = path.stat()
    except OSError as error:
        refused = refused_by_system(error)
        if refused is not None:
            raise InputError(f"cannot read the candidate pool {path}: {refused.cause}", refused.remedy) from error
        raise InputError(f"no candidate pool file {path} ({error.strerror})", "check the path or download it again") from None
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _build(path: Path, entry: Path, policy: LinePolicy) -> None:
    for stale in entry.parent.glob(f"{entry.name}.tmp-*"):  # we hold the lock, so its writer is dead
        shutil.rmtree(stale, ignore_errors=True)
    shutil.rmtree(entry, ignore_errors=True)  # damaged, or of an older version
    temporary = entry.parent / f"{entry.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    try:
        before = _file_state(path)
        meta = _write(path, temporary, policy)
        if _file_state(path) != before:
            raise InputError(f"{path} changed while it was read", "wait until its download has finished, then run again")
        (temporary / "meta.json").write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for file in temporary.iterdir():
            _fsync(file)
        temporary.rename(entry)
        _fsync(entry.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(path: Path, directory: Path, policy: LinePolicy) -> PoolMeta:
    hashes: list[NDArray[np.int64]] = []
    lines: list[NDArray[np.int32]] = []
    with (
        RejectsFile(directory / "rejects.jsonl") as rejects,
        pa.OSFile(str(directory / "data.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for batch, hashed, numbers in _batches(path, policy, rejects):
            writer.write_batch(batch)
            hashes.append(hashed)
            lines.append(numbers)
    all_hashes = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
    order = np.argsort(all_hashes, kind="stable").astype(np.int32)
    _refuse_duplicates(path, all_hashes, order, lines)
    np.save(directory / "hashes.npy", all_hashes)
    np.save(directory / "order.npy", order)
    digest = sha256_file(path)
    return PoolMeta(
        version=CONVERTER_VERSION,
        source=path.name,
        size=path.stat().st_size,
        sha256=digest,
        rows=len(all_hashes),
        rejected_lines=rejects.lines,
    )


def _batches(
    path: Path, policy: LinePolicy, rejects: RejectsFile
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64], NDArray[np.int32]]]:
    """Record batches with the hashed did and the line number of each row."""
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    dids, texts, images, modalities, contents = columns
    numbers: list[int] = []
    for number, row in read_rows(path, Candidate, policy=policy, rejects=rejects):
        dids.append(row.did)
        texts.append(row.txt)
        images.append(row.img_path)
        modalities.append(row.modality._value_)  # a plain str: Arrow takes subclasses slowly
        contents.append(row.src_content)
        numbers.append(number)
        if len(numbers) == BATCH_ROWS:
            yield _batch(columns, numbers)
            for column in (*columns, numbers):
                column.clear()
    if numbers:
        yield _batch(columns, numbers)


def _batch(columns: tuple[list[Any], ...], numbers: list[int]) -> tuple[pa.RecordBatch, NDArray[np.int64], NDArray[np.int32]]:
    batch = pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    # The pattern of a did is checked: one digit, a colon, the number.
    hashed = np.array([int(did[0]) * DID_HASH_BASE + int(did[2:]) for did in columns[0]], np.int64)
    return batch, hashed, np.array(numbers, np.int32)


def _refuse_duplicates(path: Path, hashes: NDArray[np.int64], order: NDArray[np.int32], lines: list[NDArray[np.int32]]) -> None:
    ordered = hashes[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(repeats):
        return
    line_of = np.concatenate(lines)
    problems = []
    for at in repeats[:MAX_LISTED]:
        first, second = line_of[order[at]], line_of[order[at + 1]]
        did = f"{ordered[at] // DID_HASH_BASE}:{ordered[at] % DID_HASH_BASE}"
        problems.append(LineProblem(str(path), int(second), "did", repr(did), f"the same did as in line {first}"))
    raise MalformedInput(problems, more=len(repeats) > MAX_LISTED)


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    with _descriptor(path) as descriptor:
        os.fsync(descriptor)
