"""Images that cannot be read (missing, damaged, or of a shape that the student's processor refuses): refused, or left out.

By default the first such image ends the work with an error that names its file, its record, qid or did, and the setting. With
``data.skip_unreadable`` what shows the image is left out, counted and listed:

    a training        records whose query or whose every positive cannot be read; and such positives and negatives of other
                      records. All images are checked once per run, before the first step: RUN/unreadable.json
    a pool, an index  its candidate: X_unreadable.json beside the vectors
    an evaluation     its query, which counts as a miss: X_unreadable.json beside the vectors. A positive that was left out of
                      its pool cannot be retrieved, so its query counts as a miss too
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pyarrow as pa

from pipeline.dataset.training_store import training_store
from pipeline.files.state import read_json
from pipeline.mbeir.image_store import ImageProblem
from pipeline.progress_meter import Meter
from schemas.errors import InputError
from schemas.mbeir import Candidate
from schemas.training import TrainConfig
from trainer.data.batches import BatchSource
from trainer.data.dataset import Candidates, Item, Records
from trainer.data.encoding import EncodedSequence
from trainer.data.exclusions import Exclusion, refuse_most, save_exclusions

T = TypeVar("T")

_AT_ONCE: Final = 2_048


class UnreadableImage(InputError):
    """`exclusion`: how it would be listed if it were left out; lost when the error is pickled."""

    exclusion: Exclusion


def refuse(kind: Literal["record", "query", "candidate"], name: str, problem: ImageProblem) -> UnreadableImage:
    """The error to raise for an image that cannot be read."""
    plural = {"record": "records", "query": "queries", "candidate": "candidates"}[kind]
    error = UnreadableImage(
        f"{kind} {name}: {problem.problem}", f"{problem.remedy}; or leave such {plural} out: data.skip_unreadable=true"
    )
    error.exclusion = Exclusion.of(name, problem)
    return error


class StudentBatches(BatchSource):
    """Batches whose errors name the record or did of an image that cannot be read."""

    def encode_candidate(self, candidate: Candidate) -> EncodedSequence:
        try:
            return super().encode_candidate(candidate)
        except ImageProblem as problem:
            raise refuse("candidate", candidate.did, problem) from problem

    def _encode(self, item: Item, written: str, **flags: bool) -> EncodedSequence:
        try:
            return super()._encode(item, written, **flags)
        except ImageProblem as problem:
            raise refuse("record", item.id, problem) from problem


def readable_records(config: TrainConfig, records: Records, candidates: Candidates) -> Records:
    """Without the records, positives and negatives whose images cannot be read.

    Checks all images once and writes OUT/unreadable.json; a resumed run uses that list. Raises InputError if too few
    are left (`data.most_unreadable`).
    """
    file = config.out / "unreadable.json"
    if not file.is_file() or read_json(file, "remove it: the images are checked again")["dataset_sha256"] != records.digest:
        _list_unreadable(file, records, list(_check_images(config, records, candidates)), config.data.most_unreadable)
    listed = read_json(file, "remove it: the images are checked again")
    unreadable = {entry["name"] for entry in [*listed["left_out"], *listed["images"]]}
    if not unreadable:
        return records
    cut = [_without(entry, unreadable) for entry in records.table.to_pylist() if entry["id"] not in unreadable]
    readable = [entry for entry in cut if entry["positives"]]
    return Records(pa.Table.from_pylist(readable, records.table.schema), records.name, records.digest)


def _list_unreadable(file: Path, records: Records, exclusions: list[Exclusion], most: float) -> None:
    by_name = {one.name: one for one in exclusions}
    causes = (_cause(entry, by_name) for entry in records.table.to_pylist())
    lost = [cause for cause in causes if cause is not None]
    if lost:
        refuse_most(f"the records of {records.name}", lost, len(records), most)
    names = {one.name for one in lost}
    others = [one._asdict() for one in exclusions if one.name not in names]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_exclusions(file, lost, dataset_sha256=records.digest, images=others)


def _check_images(config: TrainConfig, records: Records, candidates: Candidates) -> Iterator[Exclusion]:
    """Opens every image of the records' queries and candidates; yields those that cannot be read."""
    images = training_store(config)
    columns = ("positives", "hard_negatives") if config.data.negatives_per_query else ("positives",)
    dids = sorted({did for name in columns for listed in records.table[name].to_pylist() for did in listed})
    queries = zip(records.table["id"].to_pylist(), records.query_images(), strict=True)
    pairs = [(name, image) for name, images_of_query in queries for image in images_of_query]

    def check(pair: tuple[str, str]) -> Exclusion | None:
        try:
            images.open(pair[1])
        except ImageProblem as problem:
            return Exclusion.of(pair[0], problem)
        return None

    with (
        ThreadPoolExecutor(max(4, config.data.workers)) as threads,
        Meter("checking images", len(pairs) + len(dids), unit="images") as meter,
    ):
        for part in _batches(pairs):
            yield from filter(None, threads.map(check, part))
            meter.advance(len(part))
        for part_dids in _batches(dids):
            with_image = [one for one in candidates.fetch(part_dids) if one.img_path and one.modality.has_image]
            yield from filter(None, threads.map(check, [(one.did, one.img_path or "") for one in with_image]))
            meter.advance(len(part_dids))


def _batches(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _cause(record: dict[str, Any], unreadable: dict[str, Exclusion]) -> Exclusion | None:
    """Why the record is lost: its own image, or that of its first positive if no positive can be read."""
    if record["id"] in unreadable:
        return unreadable[record["id"]]
    if all(did in unreadable for did in record["positives"]):
        return unreadable[record["positives"][0]]._replace(name=record["id"])
    return None


def _without(record: dict[str, Any], names: set[str]) -> dict[str, Any]:
    kept = [i for i, did in enumerate(record["hard_negatives"]) if did not in names]
    changed = {"positives": [did for did in record["positives"] if did not in names]}
    for key in ("hard_negatives", "yes"):  # the verifier's word on each, if there is one
        if record.get(key):
            changed[key] = [record[key][i] for i in kept]
    return record | changed
