"""The teacher's client: many requests in flight, to several endpoints, robust against every server failure.

`ask` never raises for what a server does: a failure is an answer with its outcome. Where and when a request is sent:
`endpoint_places`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from types import TracebackType
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

import aiohttp

from pipeline.teacher.endpoint_places import Places, Server
from pipeline.teacher.request_body import TeacherRequest, request_body
from pipeline.teacher.response import read_completion
from pipeline.teacher.retries import CONGESTED_STATUS, draw_pause_s, is_retried, read_retry_after
from pipeline.teacher.server_load import follow_load
from schemas.hosting import Endpoint
from schemas.teacher import ClientConfig, Outcome, TeacherAnswer

logger = logging.getLogger(__name__)

AGENT: Final = "mbeir-cot"
_DETAIL_CHARACTERS: Final = 300
_DETAIL_BYTES: Final = 1 << 16
_ENGINE_DIED: Final = re.compile(r"EngineDead|EngineCore .*(?:died|encountered an issue)", re.IGNORECASE)
"""vLLM's answers to requests in flight when its engine has died."""

_CONNECT_S: Final = 15.0
"""A host that is gone does not refuse connections; it does not answer."""
_LOOKS_S: Final = (0.1, 0.2, 0.3, 0.3)
"""In all shorter than a server's restart."""


class ClientStats(NamedTuple):
    """Sums over all endpoints."""

    in_flight: int
    waiting: int
    limit: int
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class _Lost(Exception):
    """The server died while it had this request."""


class _Retry(Exception):
    """This attempt failed in a way that another may not."""

    def __init__(self, detail: str, outcome: Outcome = Outcome.EXHAUSTED_RETRIES) -> None:
        super().__init__(detail)
        self.outcome = outcome


class TeacherClient:
    """Use as an async context manager, within one event loop."""

    def __init__(self, config: ClientConfig, *, agent: str = AGENT, ours: bool = False) -> None:
        """agent: the name in the servers' logs.

        ours: this program started the servers, so one that dies may have been killed by a request (`LOST_WITH_SERVER`).
        """
        self.config, self._agent, self._ours = config, agent, ours
        self._places = Places(config)
        self._session: aiohttp.ClientSession | None = None
        self._following: list[asyncio.Future[None]] = []
        self._recent: deque[bool] = deque(maxlen=config.window)
        self._answered = self._failed = self._prompt_tokens = self._completion_tokens = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),  # attempts have their own
            auto_decompress=True,
            trust_env=self.config.trust_env,
            headers={"User-Agent": self._agent},
        )
        if self.config.load_poll_s:
            self._following = [
                asyncio.ensure_future(follow_load(self._session, server.endpoint.url, server.limiter, self.config.load_poll_s))
                for server in self._places.servers
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.close()
        for following in self._following:
            following.cancel()
        if self._session is not None:
            await self._session.close()

    def headers(self, endpoint: Endpoint) -> dict[str, str]:
        """The headers of requests to this endpoint, with its key: never log them."""
        return dict(next(server.headers for server in self._places.servers if server.endpoint == endpoint))

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """The answer to one request; `Outcome` lists what can happen to it."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.config.deadline_s):
                answer = await self._attempts(request, began)
        except TimeoutError:
            detail = f"no answer within {self.config.deadline_s:g} s"
            answer = TeacherAnswer(key=request.key, outcome=Outcome.DEADLINE, detail=detail, total_s=time.monotonic() - began)
        if answer.outcome is not Outcome.LOST_WITH_SERVER:  # these requests are sent again
            self._recent.append(not answer.ok)
        if not answer.ok:
            logger.warning(
                "%s: %s from %s after %d attempts and %.1f s: %s",
                *(answer.key, answer.outcome, answer.endpoint or "no endpoint", answer.attempts, answer.total_s, answer.detail),
            )
        self._answered += answer.ok
        self._failed += not answer.ok
        self._prompt_tokens += answer.prompt_tokens
        self._completion_tokens += answer.completion_tokens
        return answer

    def stop_sending(self, error: Exception) -> None:
        """Sends no more requests: waiting and later ones fail with this error. Those in flight continue."""
        self._places.stop_sending(error)

    def failure_share(self) -> float:
        """Share of failures among the last answers; 0 until half a window has been seen."""
        return sum(self._recent) / len(self._recent) if len(self._recent) * 2 >= self.config.window else 0.0

    def unreachable_s(self) -> float:
        """Seconds for which no server at all could be reached; 0 while one can."""
        since = [server.limiter.down_since for server in self._places.servers]
        known = [moment for moment in since if moment is not None]
        return time.monotonic() - max(known) if len(known) == len(since) else 0.0

    def stats(self) -> ClientStats:
        return ClientStats(
            sum(server.limiter.in_flight for server in self._places.servers),
            self._places.waiting,
            sum(int(server.limiter.limit) for server in self._places.servers),
            self._answered,
            self._failed,
            self._prompt_tokens,
            self._completion_tokens,
        )

    async def _attempts(self, request: TeacherRequest, began: float) -> TeacherAnswer:
        attempt = 0
        while True:
            attempt += 1
            server = await self._places.acquire()
            started = time.monotonic()
            try:
                answer = await self._attempt(server, request)
            except _Retry as failure:
                self._places.release(server)
                if attempt >= self.config.max_attempts:
                    return TeacherAnswer(
                        key=request.key,
                        outcome=failure.outcome,
                        detail=f"after {attempt} attempts: {failure}",
                        attempts=attempt,
                        latency_s=time.monotonic() - started,
                        total_s=time.monotonic() - began,
                        endpoint=server.endpoint.url,
                    )
                logger.info("%s: attempt %d at %s failed: %s", request.key, attempt, server.endpoint.url, failure)
                await asyncio.sleep(draw_pause_s(attempt, self.config))
            except _Lost as lost:
                self._places.release(server)
                return TeacherAnswer(
                    key=request.key,
                    outcome=Outcome.LOST_WITH_SERVER,
                    detail=f"its server died with it in flight: {lost}",
                    attempts=attempt,
                    latency_s=time.monotonic() - started,
                    total_s=time.monotonic() - began,
                    endpoint=server.endpoint.url,
                )
            except BaseException:
                self._places.release(server)
                raise
            else:
                latency = time.monotonic() - started
                server.limiter.succeeded(latency)
                self._places.release(server)
                now = time.monotonic()
                return answer.model_copy(update={"attempts": attempt, "latency_s": latency, "total_s": now - began})

    async def _attempt(self, server: Server, request: TeacherRequest) -> TeacherAnswer:
        """One attempt. Raises _Retry if another may succeed."""
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        body = request_body(request, server.endpoint.model)
        try:
            async with asyncio.timeout(self.config.try_timeout_s):
                async with self._session.post(server.url, data=body, headers=server.headers) as response:
                    content, status, headers = await response.read(), response.status, response.headers
        except TimeoutError as error:  # this attempt's; the deadline arrives as a cancellation
            if isinstance(error, aiohttp.ServerTimeoutError):  # while connecting; answers have no such limit
                server.limiter.unreachable()
                self._places.wake_later()
                raise _Retry(f"no connection within {_CONNECT_S:g} s") from None
            server.limiter.congested()
            raise _Retry(f"no complete answer within {self.config.try_timeout_s:g} s") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            server.limiter.unreachable()
            self._places.wake_later()
            sent = not isinstance(error, aiohttp.ClientConnectorError)
            if sent and self._ours and await _is_gone(server.url):
                raise _Lost(server.redacted(f"{type(error).__name__}: {error}")) from None
            raise _Retry(server.redacted(f"{type(error).__name__}: {error}")) from None
        except aiohttp.ClientError as error:  # an answer that is not HTTP
            raise _Retry(server.redacted(f"{type(error).__name__}: {error}")) from None
        if status == 200:
            return self._completed(server, request, content)
        # redacted before it is cut, so that no part of a key is left
        message = server.redacted(content[:_DETAIL_BYTES].decode("utf-8", "replace"))
        detail = f"HTTP {status}: {message[:_DETAIL_CHARACTERS]}"
        if status in CONGESTED_STATUS:
            server.limiter.congested(read_retry_after(headers.get("Retry-After")))
            self._places.wake_later()
        if status >= 500 and self._ours and _ENGINE_DIED.search(message):
            raise _Lost(detail)
        if is_retried(status):
            raise _Retry(detail)
        return TeacherAnswer(key=request.key, outcome=Outcome.PERMANENT_HTTP, detail=detail, endpoint=server.endpoint.url)

    def _completed(self, server: Server, request: TeacherRequest, content: bytes) -> TeacherAnswer:
        try:
            done = read_completion(content)
        except ValueError:
            # parsed again without the key: the message may otherwise contain a part of it
            raise _Retry(
                _malformed(server.redacted(content.decode("utf-8", "replace"))), Outcome.MALFORMED_COMPLETION
            ) from None
        finished = done.finish_reason == "stop"
        stopped = "" if finished else f"the server stopped for {done.finish_reason!r}"
        return TeacherAnswer.model_construct(  # built from checked parts, thousands of times a second
            key=request.key,
            outcome=Outcome.OK if finished else Outcome.INVALID_FINISH,
            detail="; ".join(filter(None, (stopped, done.note))),
            text=done.text,
            finish_reason=done.finish_reason,
            first_token_logprobs=done.first_token_logprobs,
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            model=done.model,
            fingerprint=done.fingerprint,
            endpoint=server.endpoint.url,
        )


async def _is_gone(url: str) -> bool:
    """Whether nothing listens there any more. A broken connection alone could be an idle one that the server closed."""
    parts = urlsplit(url)
    for pause in _LOOKS_S:  # a process that ends closes its listening socket last
        await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        except (OSError, TimeoutError):
            return True
        writer.close()
    return False


def _malformed(text: str) -> str:
    try:
        read_completion(text.encode())
    except ValueError as error:
        return str(error)
    return "the body is no chat completion"
