from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.files.run_log import DEBUG_VARIABLE, run_log

LOGGER = logging.getLogger("pipeline.teacher.client")
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ("the key is opensesame-1", "the key is [secret]"),
        ("the password of MY_PASSWORD is pass-word-2", "the password of MY_PASSWORD is [secret]"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': '[secret]'}"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [secret]"),
        ("it said: bearer abcdefgh12 is not known", "it said: bearer [secret] is not known"),
        (f"a token {TOKEN}, and more", "a token [secret], and more"),
        ("at https://user:secret@proxy:3128/v1", "at https://[secret]@proxy:3128/v1"),
        ("train/cirr/task7/7:12: deadline from http://10.0.0.1:8000/v1", None),
    ],
)
def test_no_secret_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, logged: str | None) -> None:
    monkeypatch.setenv("OF_THE_CONFIG", "opensesame-1\n")
    monkeypatch.setenv("MY_PASSWORD", "pass-word-2")
    with run_log(tmp_path / "logs" / "a.log", keys=["OF_THE_CONFIG", None]):
        try:
            raise ValueError(message)
        except ValueError:
            LOGGER.exception("%s", message)
    first, *_, last = (tmp_path / "logs" / "a.log").read_text().splitlines()
    assert first.endswith(f" pipeline.teacher.client: {logged or message}")
    assert last == f"ValueError: {logged or message}"  # tracebacks too


@pytest.mark.parametrize(("debug", "levels"), [("", ["INFO"]), ("1", ["DEBUG", "INFO"])])
def test_debug_sets_the_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug: str, levels: list[str]) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, debug)
    with run_log(tmp_path / "a.log"):
        LOGGER.debug("small")
        LOGGER.info("large")
    LOGGER.error("after it was closed")
    assert [line.split()[1] for line in (tmp_path / "a.log").read_text().splitlines()] == levels


def test_a_log_that_cannot_be_written_does_not_stop_the_build(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with run_log(tmp_path / "file" / "a.log"):
        LOGGER.info("nobody hears it")
    assert capfd.readouterr() == ("", "")
