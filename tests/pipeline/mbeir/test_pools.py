from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.mbeir import convert
from pipeline.mbeir.jsonl import LinePolicy, MalformedInput
from pipeline.mbeir.pools import CandidatePool
from schemas.errors import CotError, InputError
from schemas.mbeir import Candidate, hash_did
from tests.pipeline.mbeir.conftest import write_lines

texts = st.none() | st.text(max_size=20)
candidates = st.builds(
    lambda dataset, number, txt, image, modality, content: {
        "did": f"{dataset}:{number}",
        "txt": txt,
        "img_path": image,
        "modality": modality,
        "src_content": content,
    },
    st.integers(0, 9),
    st.integers(1, 9_999_999),
    texts,
    texts,
    st.sampled_from(["text", "image", "image,text"]),
    texts,
)


def rows(count: int) -> list[dict[str, object]]:
    return [{"did": f"9:{n}", "txt": f"text {n}", "modality": "text"} for n in range(1, count + 1)]


@settings(max_examples=40)
@given(
    st.lists(candidates, unique_by=lambda row: row["did"], min_size=1, max_size=40),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_fetched_candidates_equal_the_written_ones(
    tmp_path_factory: pytest.TempPathFactory, pool: list[dict[str, object]], batch_rows: int, rng: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("pool")
    path = write_lines(folder / "mbeir_x_cand_pool.jsonl", pool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "BATCH_ROWS", batch_rows)
        patch.setattr("pipeline.mbeir.pools.BATCH_ROWS", batch_rows)
        with CandidatePool.open(path, folder / "cache") as opened:
            asked = rng.choices(pool, k=2 * len(pool))  # any order, with repeats
            assert opened.fetch([str(row["did"]) for row in asked]) == [Candidate.model_validate(row) for row in asked]
            assert [did for batch in opened.batches() for did in batch["did"].to_pylist()] == [row["did"] for row in pool]
            assert opened.hashed_dids.tolist() == [hash_did(str(row["did"])) for row in pool]


def test_the_file_order_is_kept_and_positions_are_looked_up(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"did": d, "txt": d, "modality": "text"} for d in ("9:5", "0:7", "9:1")])
    with CandidatePool.open(path, cache) as pool:
        hashes = np.array([hash_did(d) for d in ("9:1", "9:2", "9:5", "0:7", "0:1")])
        assert pool.find(hashes).tolist() == [2, -1, 0, 1, -1]
        assert "0:7" in pool
        assert "0:8" not in pool


def test_an_empty_pool_is_valid(tmp_path: Path, cache: Path) -> None:
    with CandidatePool.open(write_lines(tmp_path / "p.jsonl", []), cache) as pool:
        assert len(pool) == 0
        assert pool.find(np.array([1])).tolist() == [-1]
        assert pool.fetch([]) == []


def test_unknown_dids_are_named(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows(3))
    with (
        CandidatePool.open(path, cache) as pool,
        pytest.raises(InputError, match=r"2 of 3 dids.*p\.jsonl: 9:8, 9:9\n.*global pool"),
    ):
        pool.fetch(["9:8", "9:1", "9:9"])


def test_duplicate_dids_are_refused_with_both_lines(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [*rows(3), "", {"did": "9:2", "txt": "again", "modality": "text"}])
    with pytest.raises(MalformedInput, match=r"p\.jsonl:5: did = '9:2': the same did as in line 2"):
        CandidatePool.open(path, cache)
    assert not [entry for entry in (cache / "pools").iterdir() if entry.is_dir()]


def test_skip_records_malformed_lines(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [*rows(2), "{", *rows(4)[2:]])
    with pytest.raises(MalformedInput):
        CandidatePool.open(path, cache)
    with CandidatePool.open(path, cache, policy=LinePolicy.SKIP) as pool:
        assert (len(pool), pool.rejected_lines) == (4, 1)
        assert pool.rejects_path is not None
        assert '"line": 3' in pool.rejects_path.read_text()


def test_a_changed_file_is_converted_again(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows(3))
    with CandidatePool.open(path, cache) as pool:
        before = pool.sha256
    write_lines(path, rows(4))
    with CandidatePool.open(path, cache) as pool:
        assert len(pool) == 4
        assert pool.sha256 != before


def test_the_second_opening_does_not_convert(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows(3))
    CandidatePool.open(path, cache).close()
    monkeypatch.setattr(convert, "_build", lambda *_: pytest.fail("converted again"))
    with CandidatePool.open(path, cache) as pool:
        assert len(pool) == 3


@pytest.mark.parametrize("damage", ["meta.json", "hashes.npy", "data.arrow"])
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, cache: Path, damage: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows(3))
    CandidatePool.open(path, cache).close()
    (entry,) = [e for e in (cache / "pools").iterdir() if e.is_dir()]
    (entry / damage).write_bytes(b"")
    with CandidatePool.open(path, cache) as pool:
        assert [c.did for c in pool.fetch(["9:3", "9:1"])] == ["9:3", "9:1"]


def test_a_pool_can_be_pickled(tmp_path: Path, cache: Path) -> None:
    with CandidatePool.open(write_lines(tmp_path / "p.jsonl", rows(3)), cache) as pool:
        copy = pickle.loads(pickle.dumps(pool))
        assert copy.fetch(["9:2"]) == pool.fetch(["9:2"])


def test_a_full_disk_is_a_clear_error(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = write_lines(tmp_path / "p.jsonl", rows(3))
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CotError, match=r"the disk is full\n.*what to do"):
        CandidatePool.open(path, cache)
    assert not [entry for entry in (cache / "pools").iterdir() if entry.is_dir()]


def _open(path: Path, cache: Path, results: multiprocessing.Queue[int]) -> None:
    with CandidatePool.open(path, cache) as pool:
        results.put(len(pool.fetch(["9:7", "9:1"])) * 1000 + len(pool))


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows(900))
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_open, args=(path, cache, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [results.get(timeout=5) for _ in workers] == [2900] * 3
    assert len([entry for entry in (cache / "pools").iterdir() if entry.is_dir()]) == 1


def test_a_killed_conversion_is_repeated(tmp_path: Path, cache: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows(60_000))
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_open, args=(path, cache, context.Queue()))
    worker.start()
    deadline = time.monotonic() + 30
    while not list(cache.glob("pools/*.tmp-*")):
        assert time.monotonic() < deadline, "the conversion never began"
        time.sleep(0.002)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join(30)
    with CandidatePool.open(path, cache) as pool:
        assert len(pool) == 60_000
    assert not list(cache.glob("pools/*.tmp-*"))
