"""A client with the ledger as its cache: no request that has an answer is sent again.

    prompt, images ─► fingerprint ─► ledger ─► answer
                                       └─ none ─► client ─► journal ─► answer

Two simultaneous requests with the same fingerprint are sent once.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from pipeline.ledger.entry import Entry, to_entry
from pipeline.ledger.ledger import Ledger, LedgerError
from pipeline.ledger.request_key import Identity, fingerprint
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.request_images import ImageEncoder
from pipeline.teacher.requests import messages
from prompts import ImageSlot, Prompt
from schemas.record import InputReason
from schemas.teacher import Outcome, TeacherAnswer
from schemas.teacher_config import TeacherConfig

TOO_LONG: Final = re.compile(
    r"maximum (?:context|model) length|max_model_len|longer than the maximum|context length|prompt is too long", re.IGNORECASE
)

_SUSPECT: Final = "in flight when a server died; it is asked again alone, at the end"


class Stopped(Exception):
    """The build is stopping: no new request is sent."""


class Asked(NamedTuple):
    """An answer. `known`: it came from the ledger."""

    answer: TeacherAnswer
    known: bool


class Counters:
    """Counts of requests in this process."""

    def __init__(self) -> None:
        self.asked = self.known = self.failed = 0
        self.prompt_tokens = self.completion_tokens = 0


class CachedTeacherClient:
    """A teacher's (or verifier's) client with the ledger as its cache, for one worker.

    Args:
        client: returns the client when a request must be sent; waits for the servers the first time.
        stopping: whether the build is being stopped.
        alone: no other request is in flight anywhere, so that a dying server was killed by this one.
    """

    def __init__(
        self,
        config: TeacherConfig,
        ledger: Ledger | None,
        encoder: ImageEncoder,
        client: Callable[[], Awaitable[TeacherClient]],
        stopping: Callable[[], bool] = lambda: False,
        *,
        alone: bool = False,
    ) -> None:
        self.identity = Identity(config)
        self._config = config
        self.counters = Counters()
        self._ledger, self._encoder, self._client, self._stopping = ledger, encoder, client, stopping
        self._alone = alone
        self._under_way: dict[bytes, asyncio.Future[TeacherAnswer]] = {}

    async def ask(
        self, kind: str, subject: str, prompt: Prompt, images: Mapping[str, str], *, fields: Mapping[str, Any], attempt: int = 0
    ) -> Asked:
        """The answer to a prompt. `images`: role -> path. Raises ImageProblem, LedgerError and Stopped, but no failure of the
        teacher."""
        digests = {part.role: self._encoder.digest(images[part.role]) for part in prompt if isinstance(part, ImageSlot)}
        key = fingerprint(self.identity, prompt, digests, fields, attempt)
        if key in self._under_way:
            return Asked(await asyncio.shield(self._under_way[key]), True)
        if self._ledger is not None and (known := self._ledger.get(key)) is not None:
            self.counters.known += 1
            return Asked(known, True)
        if self._ledger is not None and not self._alone and key in self._ledger.suspects:
            return Asked(TeacherAnswer(key=subject, outcome=Outcome.LOST_WITH_SERVER, detail=_SUSPECT), True)
        if self._stopping():
            raise Stopped
        if self._ledger is not None and self._ledger.failure is not None:
            raise self._ledger.failure
        encoded = {role: self._encoder.encode(images[role]) for role in digests}
        future: asyncio.Future[TeacherAnswer] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            client = await self._client()
            answer = await client.ask(TeacherRequest(subject, messages(prompt, encoded, self._config), dict(fields)))
            if self._alone and answer.outcome is Outcome.LOST_WITH_SERVER:
                answer = answer.model_copy(update={"outcome": Outcome.KILLS_SERVER, "detail": f"asked alone, {answer.detail}"})
            if self._ledger is not None:
                self._record(client, to_entry(answer, key, kind, attempt, time.time()))
            future.set_result(answer)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # marks it as retrieved, in case nothing waits for it
            raise
        finally:
            del self._under_way[key]
        self._count(answer)
        return Asked(answer, False)

    def check_image(self, path: str) -> None:
        """Raises ImageProblem for an image that cannot be used."""
        self._encoder.encode(path)

    def _record(self, client: TeacherClient, entry: Entry) -> None:
        """Records an answer. If that fails, no more requests are sent."""
        assert self._ledger is not None
        try:
            self._ledger.append(entry)
        except LedgerError as error:
            client.stop_sending(error)
            raise

    def _count(self, answer: TeacherAnswer) -> None:
        counters = self.counters
        counters.asked += 1
        counters.failed += not answer.ok
        counters.prompt_tokens += answer.prompt_tokens
        counters.completion_tokens += answer.completion_tokens


def failure_of(answer: TeacherAnswer) -> tuple[str, str]:
    """(reason, detail) of a rejection for an answer that is not usable."""
    if answer.outcome is Outcome.PERMANENT_HTTP and TOO_LONG.search(answer.detail):
        return InputReason.PROMPT_TOO_LONG, answer.detail
    return answer.outcome, answer.detail
