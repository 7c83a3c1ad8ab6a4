"""Mined hard negatives on disk (`mbeir-cot mine`), and the records that a training learns from.

The file is Parquet: a row for each query, by record id, with the dids of its negatives, hardest first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError
from schemas.os_errors import explained
from schemas.training import DataSettings
from trainer.data.dataset import Records

SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("mined_negatives", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("positive_score", pa.float32()),
    ]
)


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
        table = pq.read_table(data.mined, columns=["id", "mined_negatives"])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"data.mined: {data.mined} cannot be read: {error}", explained(error, "write it with `mbeir-cot mine RUN`").remedy
        ) from error
    mined = dict(zip(table["id"].to_pylist(), table["mined_negatives"].to_pylist(), strict=True))
    ids = records.table["id"].to_pylist()
    listed = [mined.get(identifier) or [] for identifier in ids]
    if not any(listed):
        raise InputError(
            f"data.mined: {data.mined} has no negative of any query of {data.dataset}",
            "mine with a run that was trained on this dataset's queries, or with a smaller --skip or larger --margin",
        )
    at = records.table.schema.get_field_index("hard_negatives")
    changed = records.table.set_column(at, "hard_negatives", pa.array(listed, pa.list_(pa.string())))
    digest = hashlib.sha256(records.digest.encode() + data.mined.read_bytes()).hexdigest()
    return Records(changed, records.name, digest)
