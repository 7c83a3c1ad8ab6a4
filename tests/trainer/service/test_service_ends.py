"""The service and its engine end in mid-load: nothing that was accepted is lost without an error."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.support.service import Service, started

pytestmark = pytest.mark.slow


class Load:
    """Clients that ask one query after the other until they are stopped. Each request ends in an answer or an error."""

    def __init__(self, service: Service, clients: int) -> None:
        self.answered = self.broken = 0
        self.refusals: list[tuple[int, int]] = []
        self.stopped = False
        self._service = service
        self._threads = ThreadPoolExecutor(clients)
        self._running = [self._threads.submit(self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        client = self._service.client()
        while not self.stopped:
            try:
                (row,) = client.embeddings.create(
                    model="trace", input="a town in the north", extra_body={"route": "always"}
                ).data
                assert len(row.embedding) == 256
                self.answered += 1
            except openai.APIStatusError as error:
                self.refusals.append((error.status_code, int(error.response.headers["retry-after"])))
                time.sleep(0.1)
            except openai.APIConnectionError:
                self.broken += 1
                if self._service.process.poll() is not None:
                    return
                time.sleep(0.1)

    def end(self) -> None:
        self.stopped = True
        for one in self._running:
            one.result(timeout=120)


def test_no_accepted_request_is_lost_when_the_engine_is_killed_or_the_service_is_stopped(
    finished: Path, tmp_path: Path
) -> None:
    with started(finished, tmp_path, "--drain-s", "60") as service:
        load = Load(service, 8)
        service.wait_for('mbeir_cot_embedded_total{kind="reasoning"}', 20)
        os.kill(service.engine(), signal.SIGKILL)
        service.wait_for("mbeir_cot_engine_restarts_total", 1)
        service.wait_for("mbeir_cot_engine_up", 1)
        answered = load.answered
        service.wait_for('mbeir_cot_embedded_total{kind="reasoning"}', answered + 20)
        assert {status for status, _ in load.refusals} == {503}, "what was accepted is answered, with an error"
        assert min(seconds for _, seconds in load.refusals) >= 1
        assert load.broken == 0, "no connection breaks"

        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=120) == 0
        load.end()
        log = service.log.read_text()
        _, after = re.split(r"stopping: (?=\d)", log)
        assert after.count(" 1 inputs") >= int(after.split()[0]), "what was accepted is finished"
        assert log.count(" 1 inputs") == load.answered, "and each answer reached its client"
        assert "stopped" in log.splitlines()[-1]
        with pytest.raises(ProcessLookupError):
            os.kill(service.engine(), 0)
