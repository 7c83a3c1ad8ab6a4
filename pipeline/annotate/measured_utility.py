"""Measured utilities of traces (`mbeir-cot utility`), looked up by query: 12 bytes each, so a worker can hold a million."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.mbeir.work_list import order_key
from schemas.errors import InputError
from schemas.mbeir import DATASET_IDS, Query
from schemas.os_errors import explained
from schemas.record import task_of_record


class Utilities:
    """The file of `route.utility`. A query that it does not have has no utility."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that cannot be read, or holds something else."""
        try:
            table = pq.read_table(path, columns=["id", "utility"])
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise InputError(
                f"route.utility: {path} cannot be read: {error}",
                explained(error, "write it with `mbeir-cot utility RUN DATASET`").remedy,
            ) from error
        table = table.filter(table["utility"].is_valid())
        keys = np.fromiter((_key(identifier) for identifier in table["id"].to_pylist()), np.int64, len(table))
        order = np.argsort(keys)
        self._keys, self._values = keys[order], table["utility"].to_numpy().astype(np.float32)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, query: Query) -> float | None:
        key = order_key(query.dataset_id, query.task_id, query.qid)
        at = int(np.searchsorted(self._keys, key))
        return float(self._values[at]) if at < len(self._keys) and self._keys[at] == key else None


def _key(identifier: str) -> int:
    task = task_of_record(identifier)
    return order_key(DATASET_IDS[task.dataset], task.task_id, identifier.rsplit("/", 1)[1])
