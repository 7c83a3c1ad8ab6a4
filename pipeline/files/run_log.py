"""The log file of a build, training, evaluation or index: what happened and when, to find the cause of a failure afterwards.

Modules log to `logging.getLogger(__name__)`; commands and actors open their log file here. Keys and tokens are removed from
every line as it is written."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from pipeline.files.secrets import without_secrets
from schemas.errors import CotError

DEBUG_VARIABLE: Final = "MBEIR_COT_DEBUG"
"""Set by `--debug`; passed on to actors."""

_PACKAGES: Final = ("pipeline", "trainer", "mbeir_cot")
_BYTES: Final = 16 << 20
_KEPT: Final = 4
"""Older files beside the current one: at most 80 MB in all."""
_NAMES_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LEAST_SECRET: Final = 6
"""Minimum length of a secret value: removing shorter ones would remove ordinary words."""


def debug_wanted() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


@contextlib.contextmanager
def run_log(file: Path | None, *, keys: Iterable[str | None] = (), level: int = logging.INFO) -> Iterator[None]:
    """Logs of the project's packages go to `file` while the context lasts; see `open_run_log`."""
    handler = open_run_log(file, keys=keys, level=level)
    try:
        yield
    finally:
        for name in _PACKAGES:
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def open_run_log(file: Path | None, *, keys: Iterable[str | None] = (), level: int = logging.INFO) -> logging.Handler:
    """Appends to `file`, or writes to standard error, from now on. An actor does not close it: it ends with its process.

    keys: further environment variables whose values are secret. level: DEBUG instead, with `--debug`.
    The file is created by its first line. If it cannot be written, there is no log: no work depends on it.
    """
    level = logging.DEBUG if debug_wanted() else level
    if file is None:
        handler: logging.Handler = logging.StreamHandler()
    else:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
        handler = _QuietHandler(
            file, maxBytes=_BYTES, backupCount=_KEPT, encoding="utf-8", errors="backslashreplace", delay=True
        )
    handler.setFormatter(_Formatter(keys))
    handler.setLevel(level)
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
    return handler


@contextlib.contextmanager
def log_failure(logger: logging.Logger, what: str) -> Iterator[None]:
    """Logs the error that ends `what`, with a traceback unless its cause is known, and raises it again."""
    try:
        yield
    except BaseException as error:
        known = isinstance(error, CotError | KeyboardInterrupt)
        logger.error("%s: ended by %r", what, error, exc_info=not known)  # noqa: TRY400 (a known cause needs no traceback)
        raise


class _QuietHandler(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Silent: on a full disk the work itself reports the error, so the log need not print a traceback per line."""


class _Formatter(logging.Formatter):
    """UTC times with milliseconds, level, module, message; no secrets."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, keys: Iterable[str | None]) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s")
        named = set(filter(None, keys))
        self._values = {
            value
            for name, text in os.environ.items()
            if (name in named or _NAMES_SECRET.search(name)) and len(value := text.strip()) >= _LEAST_SECRET
        }

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record), self._values)
