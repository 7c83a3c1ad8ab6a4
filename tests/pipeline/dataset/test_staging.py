from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS
from pipeline.dataset.staging import Chunk, Staging


class Shared(np.ndarray):
    """Memory that another owner holds, like Ray's object store, which keeps a whole chunk while any part of it is referenced."""


def test_a_staged_chunk_is_released(tmp_path: Path) -> None:
    memory = np.arange(1000, dtype=np.int64).view(Shared)
    ended = weakref.ref(memory)
    with Staging(tmp_path / "staging") as staging:
        staging.put(0, Chunk(RECORDS.empty_table(), REJECTIONS.empty_table(), memory[:3]))
        del memory
        gc.collect()
        assert ended() is None
        assert staging.keys[0].tolist() == [0, 1, 2]
