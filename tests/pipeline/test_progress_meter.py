from __future__ import annotations

import pytest

from pipeline import progress_meter as progress
from pipeline.progress_meter import Meter, quiet_progress


class _Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_plain_line_shows_progress_speed_and_remaining_time(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("trace", 200, unit="steps") as meter:
        clock.now += 20
        meter.note = "loss 1"
        meter.advance(10)
        clock.now += 1
        meter.advance(1)  # too soon for another line
    assert capsys.readouterr().err == "trace: 5% (10 steps, 0.50 steps/s), about 380 s left loss 1\n"


def test_the_work_of_an_earlier_process_does_not_count_as_speed(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("trace", 200, unit="steps") as meter:
        meter.resume(100)
        clock.now += 20
        meter.advance(10)
    assert capsys.readouterr().err == "trace: 55% (110 steps, 0.50 steps/s), about 180 s left\n"


def test_a_quiet_meter_prints_nothing(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_progress(), Meter("trace", 2, unit="steps") as meter:
        clock.now += 20
        meter.advance(2)
    assert capsys.readouterr().err == ""
