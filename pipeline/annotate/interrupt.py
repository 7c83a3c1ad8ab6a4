"""Ctrl-C and SIGTERM during a build."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any


class Interrupt:
    """The first Ctrl-C (or SIGTERM) asks the build to stop, the second ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self.listen()
        return self

    def listen(self) -> None:
        with contextlib.suppress(ValueError):  # not the main thread, which alone may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.signal(number, self._hear)
                self._former.setdefault(number, former)

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True
