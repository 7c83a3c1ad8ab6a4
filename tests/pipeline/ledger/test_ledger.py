"""The ledger: journals, segments, kills, compaction. Long because every way to lose an answer is tried on one writer."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files.locks import LockError, only_one
from pipeline.ledger.entry import to_answer, to_entry
from pipeline.ledger.journal import Journal, LedgerError, encode, read_journal
from pipeline.ledger.ledger import Ledger, recover
from pipeline.ledger.maintenance import compact, ledger_stats, verify_ledger
from pipeline.ledger.segment import ROW_GROUP, SegmentStore
from schemas.teacher import Outcome, TeacherAnswer

write = pq.write_table


def answer(text: str = "fine", outcome: Outcome = Outcome.OK, key: str = "train/cirr/task7/8:1") -> TeacherAnswer:
    return TeacherAnswer(
        key=key, outcome=outcome, text=text, finish_reason="stop", first_token_logprobs={"yes": -0.1, "no": -2.5, "x": -9999.0},
        prompt_tokens=10, completion_tokens=3, latency_s=0.5, total_s=0.75, attempts=2, model="m", fingerprint="fp",
    )  # fmt: skip


def entry(number: int, text: str = "fine", outcome: Outcome = Outcome.OK, subject: str = "s") -> dict[str, Any]:
    return to_entry(answer(text, outcome, subject), key(number), "reason", 0, 1.0)


def key(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(8)


# Writing and reading answers


def test_an_answer_is_read_as_it_was_written(tmp_path: Path) -> None:
    given = answer()
    for sealed in (False, True):
        ledger = Ledger(tmp_path / str(sealed))
        ledger.append(to_entry(given, key(1), "reason", 0, 1.0))
        if sealed:
            ledger.close()
            ledger = Ledger(tmp_path / str(sealed))
        back = ledger.get(key(1))
        assert back is not None
        kept = {"yes": -0.1, "no": -2.5}  # the masked token is not an alternative
        assert back.model_dump() == given.model_copy(update={"first_token_logprobs": kept, "endpoint": ""}).model_dump()
        assert ledger.get(key(2)) is None
        ledger.close()


@pytest.mark.slow
@given(st.lists(st.text(), max_size=8), st.data())
def test_a_truncated_journal_keeps_every_complete_line(texts: list[str], data: st.DataObject) -> None:
    lines = [encode(entry(i, text)) for i, text in enumerate(texts)]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"journal-{os.getpid()}"
    path.write_bytes(whole[:cut])
    complete, length = 0, 0
    for line in lines:
        length += len(line)
        complete += length - 1 <= cut  # the line feed itself may be missing
    assert [e["text"] for e in read_journal(path).entries] == texts[:complete]
    path.unlink()


def test_a_damaged_line_is_owed_again_and_the_others_stay(tmp_path: Path) -> None:
    lines = [bytearray(encode(entry(i, f"text {i}"))) for i in range(5)]
    lines[2][30] ^= 1
    (tmp_path / "j").write_bytes(b"".join(lines))
    found = read_journal(tmp_path / "j")
    assert [e["text"] for e in found.entries] == ["text 0", "text 1", "text 3", "text 4"]
    assert found.damaged == 1


def _write_until_killed(location: Path, ready: Any) -> None:
    ledger = Ledger(location, segment_answers=50)
    for number in range(10**9):
        ledger.append(entry(number, f"text {number}"))
        if number == 380:
            ready.set()


def test_a_killed_writer_loses_no_answer(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=_write_until_killed, args=(tmp_path / "l", ready))
    writer.start()
    assert ready.wait(60)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    recover(tmp_path / "l")
    ledger = Ledger(tmp_path / "l")
    for number in range(380):
        found = ledger.get(key(number))
        assert found is not None, number
        assert found.text == f"text {number}"
    assert not list((tmp_path / "l" / "journals").iterdir())
    again = recover(tmp_path / "l")
    assert (again.journals, again.answers) == (0, 0)


def test_the_journal_of_a_running_writer_is_left_alone(tmp_path: Path) -> None:
    writer = Ledger(tmp_path)
    writer.append(entry(1))
    found = recover(tmp_path)
    assert [path.suffix for path in found.busy] == [".journal"]
    assert not SegmentStore(tmp_path).names()
    writer.close()
    assert not recover(tmp_path).busy


def test_a_kill_between_sealing_and_removing_the_journal_duplicates_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(entry(1))
    journal = next((tmp_path / "journals").iterdir())
    copy = journal.read_bytes()
    ledger.close()
    journal.write_bytes(copy)  # as if it had not been removed yet
    recover(tmp_path)
    assert ledger_stats(tmp_path).answers == 1
    assert not journal.exists()


def test_concurrent_writers_and_segments_that_pyarrow_reads(tmp_path: Path) -> None:
    writers = [Ledger(tmp_path, segment_answers=7) for _ in range(3)]
    for number in range(60):
        writers[number % 3].append(entry(number, f"text {number}"))
    for writer in writers:
        writer.close()
    reader = Ledger(tmp_path)
    assert [reader.get(key(n)).text for n in range(60)] == [f"text {n}" for n in range(60)]  # type: ignore[union-attr]
    assert pq.read_table([tmp_path / name for name in SegmentStore(tmp_path).names()]).num_rows == 60


def test_answers_sealed_during_a_run_are_still_found(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, segment_answers=10)
    for number in range(95):
        ledger.append(entry(number, f"text {number}"))
    time.sleep(0.3)
    ledger.collect()
    assert [ledger.get(key(n)).text for n in range(95)] == [f"text {n}" for n in range(95)]  # type: ignore[union-attr]
    ledger.close()


# Which answer wins


def test_of_several_answers_the_same_one_is_found_again_until_a_better_one_is_sealed(tmp_path: Path) -> None:
    def seal(one: dict[str, Any]) -> None:
        writer = Ledger(tmp_path)
        writer.append(one)
        writer.close()

    seal(entry(1, "first", Outcome.PERMANENT_HTTP))
    seal(entry(1, "second", Outcome.PERMANENT_HTTP))
    ledger = Ledger(tmp_path)
    texts = {ledger.get(key(1)).text for _ in range(3)}  # type: ignore[union-attr]
    assert texts in ({"first"}, {"second"})  # segments of the same second are in any order
    seal(entry(1, "usable"))
    ledger.refresh()
    assert [ledger.get(key(1)).text for _ in range(2)] == ["usable"] * 2  # type: ignore[union-attr]
    ledger.close()


def test_permanent_failures_are_kept_and_transient_ones_are_owed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(entry(1, outcome=Outcome.PERMANENT_HTTP))
    ledger.append(entry(2, outcome=Outcome.DEADLINE))
    assert ledger.get(key(2)) is None
    ledger.close()
    again, retrying = Ledger(tmp_path), Ledger(tmp_path, retry_failed=True)
    assert again.get(key(1)).outcome is Outcome.PERMANENT_HTTP  # type: ignore[union-attr]
    assert again.get(key(2)) is None
    assert retrying.get(key(1)) is None
    retrying.append(entry(1, "retried"))
    retrying.close()
    assert Ledger(tmp_path).get(key(1)).text == "retried"  # type: ignore[union-attr]


def test_compaction_keeps_the_winning_answers(tmp_path: Path) -> None:
    for number in range(6):
        ledger = Ledger(tmp_path)
        ledger.append(entry(number, f"text {number}"))
        ledger.append(entry(99, outcome=Outcome.PERMANENT_HTTP if number < 3 else Outcome.OK, text=f"late {number}"))
        ledger.close()
    before = Ledger(tmp_path)
    wanted = {n: before.get(key(n)).text for n in (*range(6), 99)}  # type: ignore[union-attr]
    assert compact(tmp_path) == (6, 1)
    after = Ledger(tmp_path)
    assert {n: after.get(key(n)).text for n in (*range(6), 99)} == wanted  # type: ignore[union-attr]
    assert ledger_stats(tmp_path).answers == 7
    assert verify_ledger(tmp_path) == []


def test_compactions_within_a_second_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)  # or its clock was set back
    for number in range(4):
        ledger = Ledger(tmp_path)
        ledger.append(entry(number, f"text {number}"))
        ledger.close()
        compact(tmp_path)
    assert len(SegmentStore(tmp_path).names()) == 1
    after = Ledger(tmp_path)
    assert [after.get(key(n)).text for n in range(4)] == [f"text {n}" for n in range(4)]  # type: ignore[union-attr]


def test_no_compaction_while_a_build_elsewhere_writes_its_journal(tmp_path: Path) -> None:
    for number in range(2):
        SegmentStore(tmp_path).write(f"segment-{number}.parquet", [entry(number)])
    ledger = Ledger(tmp_path)
    ledger.append(entry(7))
    with pytest.raises(LedgerError, match="a build is writing"):
        compact(tmp_path)
    ledger.close()
    assert compact(tmp_path) == (3, 1)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_no_compaction_beside_the_build(tmp_path: Path, elsewhere: bool) -> None:
    out, lock = tmp_path / "out", tmp_path / "out.lock" if elsewhere else None
    for number in range(2):
        SegmentStore(out / "ledger").write(f"segment-{number}.parquet", [entry(number)])
    with only_one(out, lock), pytest.raises(LockError, match="another build is running"):
        compact(out / "ledger")
    assert compact(out / "ledger") == (2, 1)
    assert (out / ".lock").is_symlink() == elsewhere


def test_verify_names_damaged_files(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(entry(1))
    ledger.close()
    segment = tmp_path / SegmentStore(tmp_path).names()[0]
    segment.write_bytes(segment.read_bytes()[:-20])
    (tmp_path / "journals" / "x.journal").write_bytes(encode(entry(2)) + b"0000 torn")
    found = verify_ledger(tmp_path)
    assert [problem.split(":")[0] for problem in found] == [segment.name, "x.journal"]
    with pytest.raises(LedgerError, match="ledger verify"):
        Ledger(tmp_path)


@pytest.mark.parametrize("checksums", [True, False])  # earlier versions wrote none
def test_a_damaged_page_is_an_error_and_no_missing_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checksums: bool
) -> None:
    if not checksums:
        monkeypatch.setattr(
            pq, "write_table", lambda *given, **options: write(*given, **options | {"write_page_checksum": False})
        )
    ledger = Ledger(tmp_path)
    for number in range(ROW_GROUP + 1):
        ledger.append(entry(number, f"text {number}"))
    ledger.close()
    segment = tmp_path / SegmentStore(tmp_path).names()[0]
    second = pq.ParquetFile(segment).metadata.row_group(1)
    texts = next(c for c in map(second.column, range(second.num_columns)) if c.path_in_schema == "text")
    content = bytearray(segment.read_bytes())
    start = texts.data_page_offset if checksums else texts.dictionary_page_offset
    for place in range(start + 40, start + 45) if checksums else range(start, start + 45):
        content[place] ^= 0x55
    segment.write_bytes(content)
    reader = Ledger(tmp_path)
    assert reader.get(key(0)) is not None
    with pytest.raises(LedgerError, match=f"{segment.name} is damaged") as caught:
        reader.get(key(ROW_GROUP))
    assert "ledger verify" in caught.value.remedy
    with pytest.raises(LedgerError, match=f"{segment.name} is damaged"):
        reader.get(key(ROW_GROUP))  # and again
    (found,) = verify_ledger(tmp_path)
    assert "move it away" in found
    with pytest.raises(LedgerError, match="is damaged"):
        SegmentStore(tmp_path).read(segment.name)


def test_a_full_disk_is_an_error_and_leaves_complete_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(entry(1))
    size = (tmp_path / "j").stat().st_size
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, old[1]))  # a part of the next line fits
    try:
        with pytest.raises(LedgerError, match="disk is full"):
            journal.append(entry(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    journal.append(entry(3, "after space was made"))
    found = read_journal(tmp_path / "j")
    assert [e["text"] for e in found.entries] == ["fine", "after space was made"]
    assert found.damaged == 0


def test_a_remote_ledger_needs_a_local_journal(tmp_path: Path) -> None:
    from schemas.errors import ConfigError

    with pytest.raises(LedgerError, match="cannot open the ledger"):
        Ledger("nosuch://bucket/ledger")
    uri = f"file://{tmp_path}/l"
    ledger = Ledger(uri)
    ledger.append(entry(1))
    ledger.close()
    assert Ledger(tmp_path / "l").get(key(1)) is not None
    store = SegmentStore(tmp_path / "l")
    store.is_local = False
    from pipeline.ledger.ledger import journals_directory

    with pytest.raises(ConfigError, match=r"ledger\.journal"):
        journals_directory(store, None)


def test_logprobs_survive_a_round_trip() -> None:
    assert to_answer(entry(1)).first_token_logprobs == {"yes": -0.1, "no": -2.5}


def test_a_journal_gets_its_name_only_after_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another writer could take it for an abandoned one before it is locked."""
    import fcntl

    seen = []

    def lock(file: int, how: int) -> None:
        seen.append(sorted(path.name for path in tmp_path.glob("*.journal")))

    monkeypatch.setattr(fcntl, "flock", lock)
    journal = Journal(tmp_path / "a.journal")
    journal.append(entry(1))
    journal.close()
    journal.sync()  # the sync may come late
    assert seen == [[]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.journal"]
    assert len(read_journal(tmp_path / "a.journal").entries) == 1


def test_recovery_removes_journals_whose_writer_died_while_creating_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a writer whose file is taken for such a one creates it again."""
    directory = tmp_path / "journals"
    directory.mkdir()
    abandoned = directory / "1-2-3.journal.new"
    abandoned.touch()
    recover(tmp_path)
    assert not abandoned.exists()

    rename, taken = Path.rename, []

    def raced(self: Path, target: Path) -> Path:
        if not taken:
            taken.append(self)
            self.unlink()  # as recovery does between opening and locking
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", raced)
    journal = Journal(directory / "4-5-6.journal")
    journal.append(entry(1))
    assert taken
    assert [path.name for path in directory.iterdir()] == ["4-5-6.journal"]
    recover(tmp_path)
    assert journal.path.exists()  # its writer lives
    assert len(read_journal(journal.path).entries) == 1
