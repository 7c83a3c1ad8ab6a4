"""Images that cannot be read (missing, damaged, or of a shape that the student's processor refuses): refused, or left out.

By default the first of them ends the work, with its file, its row or did, and the setting. With ``data.skip_unreadable`` what
shows it is left out, counted and listed:

    a training        rows whose query, or whose every positive, cannot be read; such positives and negatives of other rows.
                      All images are looked at before the first step, once a run: RUN/unreadable.json
    a pool, an index  its candidate: X_unreadable.json beside the vectors
    an evaluation     its query; a positive that was left out of its pool cannot be found, and counts as a miss
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa

from pipeline.dataset.training_store import training_store
from pipeline.files.durable import replace_text
from pipeline.mbeir.images import ImageProblem
from pipeline.meter import Meter
from schemas.errors import InputError
from schemas.mbeir import Candidate
from schemas.training import TrainConfig
from trainer.data.batches import BatchSource
from trainer.data.dataset import Candidates, Item, Records
from trainer.data.encoding import EncodedSequence

T = TypeVar("T")

_AT_ONCE: Final = 2_048
_NAMED: Final = 5


class LeftOut(NamedTuple):
    """name: a did, a qid or a record's id. image: below the M-BEIR root."""

    name: str
    image: str
    reason: str
    detail: str

    @classmethod
    def of(cls, name: str, problem: ImageProblem) -> LeftOut:
        return cls(name, problem.path, str(problem.reason), problem.detail)


class Unreadable(InputError):
    """`left_out`: what leaving it out would list; not there in another process."""

    left_out: LeftOut


def refused(kind: str, name: str, problem: ImageProblem) -> Unreadable:
    """kind: row, query or candidate."""
    remedy = f"{problem.remedy}; or leave such rows out: data.skip_unreadable=true"
    found = Unreadable(f"{kind} {name}: {problem.problem}", remedy)
    found.left_out = LeftOut.of(name, problem)
    return found


def told(what: str, found: Sequence[LeftOut], file: Path) -> str:
    named = ", ".join(f"{one.name} ({one.image}: {one.detail})" for one in found[:_NAMED])
    more = ", …" if len(found) > _NAMED else ""
    return f"{len(found):,} {what} whose images cannot be read left out: {named}{more}; listed in {file}"


def save_list(path: Path, found: Sequence[LeftOut], **more: Any) -> None:
    replace_text(path, json.dumps(more | {"left_out": [one._asdict() for one in found]}, indent=1) + "\n")


def load_list(path: Path) -> list[LeftOut]:
    if not path.is_file():
        return []
    return [LeftOut(**one) for one in json.loads(path.read_text(encoding="utf-8"))["left_out"]]


class StudentBatches(BatchSource):
    """Batches of images that the student's processor takes; a refusal names row or did."""

    def candidate_row(self, candidate: Candidate) -> EncodedSequence:
        try:
            return super().candidate_row(candidate)
        except ImageProblem as problem:
            raise refused("candidate", candidate.did, problem) from problem

    def _query(self, item: Item, written: str, **flags: bool) -> EncodedSequence:
        try:
            return super()._query(item, written, **flags)
        except ImageProblem as problem:
            raise refused("row", item.id, problem) from problem


def readable_records(config: TrainConfig, records: Records, candidates: Candidates, *, quiet: bool = False) -> Records:
    """Without the rows, positives and negatives that cannot be read. Looks at all images once, and writes OUT/unreadable.json;
    a run that goes on takes what is written there. Raises InputError where no row is left."""
    file = config.out / "unreadable.json"
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8"))["dataset_sha256"] != records.digest:
        found = list(_unreadable(config, records, candidates, quiet=quiet))
        config.out.mkdir(parents=True, exist_ok=True)
        bad = {one.name: one for one in found}
        lost = [one for row in records.table.to_pylist() if (one := _lost(row, bad)) is not None]
        others = [one for one in found if one.name not in {row.name for row in lost}]
        if len(lost) == len(records):
            raise InputError(
                f"no row of {records.name} can be read: {lost[0].image}: {lost[0].detail}, and {len(lost) - 1:,} more",
                "is the disk with the images there? (data.mbeir)",
            )
        save_list(file, lost, dataset_sha256=records.digest, images=[one._asdict() for one in others])
    known = json.loads(file.read_text(encoding="utf-8"))
    without = {one["name"] for one in [*known["left_out"], *known["images"]]}
    if not without:
        return records
    rows = [_without(row, without) for row in records.table.to_pylist() if row["id"] not in without]
    kept = [row for row in rows if row["positives"]]
    return Records(pa.Table.from_pylist(kept, records.table.schema), records.name, records.digest)


def _unreadable(config: TrainConfig, records: Records, candidates: Candidates, *, quiet: bool) -> Iterator[LeftOut]:
    images = training_store(config)
    columns = ("positives", "hard_negatives") if config.data.hard_negatives else ("positives",)
    dids = sorted({did for name in columns for row in records.table[name].to_pylist() for did in row})
    queries = zip(records.table["id"].to_pylist(), records.table["query_image"].to_pylist(), strict=True)
    pairs = [(name, image) for name, image in queries if image]

    def look(pair: tuple[str, str]) -> LeftOut | None:
        try:
            images.open(pair[1])
        except ImageProblem as problem:
            return LeftOut.of(pair[0], problem)
        return None

    with (
        ThreadPoolExecutor(max(4, config.data.workers)) as threads,
        Meter("looking at images", len(pairs) + len(dids), unit="images", quiet=quiet) as meter,
    ):
        for part in _parts(pairs):
            yield from filter(None, threads.map(look, part))
            meter.advance(len(part))
        for asked in _parts(dids):
            shown = [one for one in candidates.fetch(asked) if one.img_path and one.modality.has_image]
            yield from filter(None, threads.map(look, [(one.did, one.img_path or "") for one in shown]))
            meter.advance(len(asked))


def _parts(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _lost(row: dict[str, Any], bad: dict[str, LeftOut]) -> LeftOut | None:
    if row["id"] in bad:
        return bad[row["id"]]
    if all(did in bad for did in row["positives"]):
        return bad[row["positives"][0]]._replace(name=row["id"])
    return None


def _without(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return row | {key: [did for did in row[key] if did not in names] for key in ("positives", "hard_negatives")}
