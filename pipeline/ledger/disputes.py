"""Queries that used one of two answers to the same request, and not the one that the ledger chooses."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.ledger.segment import SegmentStore, look_up_keys


def disputed_subjects(store: SegmentStore) -> set[str]:
    """Ids of queries that used an answer which `Ledger.get` does not choose, because another query sent the same request at the
    same time."""
    keys = [look_up_keys(store.read(name, columns=["fingerprint"])) for name in store.names()]
    if not keys:
        return set()
    values, counts = np.unique(np.concatenate(keys), return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return set()
    first: set[bytes] = set()
    disputed: set[str] = set()
    for name, of_segment in zip(store.names(), keys, strict=True):
        rows = np.flatnonzero(np.isin(of_segment, repeated))
        if not len(rows):
            continue
        for row in store.read(name, columns=["fingerprint", "subject", "outcome"]).take(pa.array(rows)).to_pylist():
            if row["outcome"] != "ok":
                continue
            if row["fingerprint"] in first:
                disputed.add(row["subject"])
            first.add(row["fingerprint"])
    return disputed
