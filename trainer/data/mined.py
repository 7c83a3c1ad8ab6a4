"""Mined hard negatives on disk (`mbeir-cot mine`), and the records that a training learns from.

The file is Parquet: a row for each query, by record id, with the dids of its negatives, hardest first. `yes` and `positive_yes`
are the verifier's P(yes) of each of them and of the first positive, where it was asked; files of earlier versions have neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError
from schemas.os_errors import explained
from schemas.training import DataSettings
from trainer.data.dataset import Item, Records

SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("mined_negatives", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("positive_score", pa.float32()),
        pa.field("yes", pa.list_(pa.float32())),
        pa.field("positive_yes", pa.float32()),
    ]
)


JUDGED: Final = ("yes", "positive_yes")


class Judged(NamedTuple):
    """A verifier's word on a query's candidates in a batch: P(yes) of each. places: among the batch's candidates."""

    query: int
    places: tuple[int, ...]
    yes: tuple[float, ...]

    @classmethod
    def of(cls, query: int, item: Item, negatives: Mapping[int, int]) -> Judged | None:
        """None without a word on the positive and a negative. negatives: place -> index among the item's hard negatives."""
        known = {place: item.yes[index] for place, index in negatives.items() if index < len(item.yes)}
        sure = {place: p for place, p in known.items() if p is not None}
        if item.positive_yes is None or not sure:
            return None
        return cls(query, (query, *sure), (item.positive_yes, *sure.values()))


def write_mined(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, str]) -> None:
    """about: where they come from, kept in the file's metadata."""
    table = pa.Table.from_pylist(list(rows), SCHEMA.with_metadata(about))
    new = path.with_suffix(".new")
    pq.write_table(table, new, compression="zstd")
    new.replace(path)


def training_records(data: DataSettings) -> Records:
    """The dataset's records without held-out tasks; with `hard_negatives: mined` their negatives are the mined ones.

    Raises InputError for a file of mined negatives that cannot be read, or is of other queries.
    """
    records = Records.load(data.dataset).without(data.hold_out)
    if data.hard_negatives != "mined" or data.mined is None:
        return records
    try:
        judged = [name for name in JUDGED if name in pq.read_schema(data.mined).names]
        table = pq.read_table(data.mined, columns=["id", "mined_negatives", *judged])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"data.mined: {data.mined} cannot be read: {error}", explained(error, "write it with `mbeir-cot mine RUN`").remedy
        ) from error
    mined = {row["id"]: row for row in table.to_pylist()}
    rows = [mined.get(identifier, {}) for identifier in records.table["id"].to_pylist()]
    listed = [row.get("mined_negatives") or [] for row in rows]
    if not any(listed):
        raise InputError(
            f"data.mined: {data.mined} has no negative of any query of {data.dataset}",
            "mine with a run that was trained on this dataset's queries, or with a smaller --skip or larger --margin",
        )
    at = records.table.schema.get_field_index("hard_negatives")
    changed = records.table.set_column(at, "hard_negatives", pa.array(listed, pa.list_(pa.string())))
    for name in judged:
        changed = changed.append_column(SCHEMA.field(name), pa.array([row.get(name) for row in rows], SCHEMA.field(name).type))
    digest = hashlib.sha256(records.digest.encode() + data.mined.read_bytes()).hexdigest()
    return Records(changed, records.name, digest)
