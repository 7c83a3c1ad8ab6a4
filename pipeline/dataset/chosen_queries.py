"""The queries of a dataset, and what was left of the input because enough records were accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.mbeir.work_list import WorkList


@dataclass(frozen=True)
class Chosen:
    """work: the queries that belong to the dataset.

    left: (dataset, task) -> queries that were not needed. short: kind -> its records, where the input ended before there were
    enough of them.
    """

    work: WorkList
    left: Mapping[tuple[str, int], int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
