"""The HTTP routes: `/v1/embeddings`, `/v1/models`, `/health` and `/metrics`, with OpenAI's form of errors.

A request is accepted in steps, and each may refuse it: its key, the state of the service, the size of its body, its fields, the
number of its inputs, its images. What it holds is released when it ends; a client that goes away frees its places in the line.
Log lines have no texts, URLs, keys or headers.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from schemas.errors import CotError, InputError
from schemas.service import ROUTES, ServiceSettings
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION
from trainer.service.batcher import Admission, Batcher, Held, Unavailable
from trainer.service.engine_loop import Failed, Refused, Work
from trainer.service.engine_process import EngineProcess
from trainer.service.media import MediaLoader
from trainer.service.metrics import CONTENT_TYPE, ServiceMetrics
from trainer.service.protocol import Embedded, EmbeddingRequest, ServiceInput, TextPart, answer

logger = logging.getLogger(__name__)

_READERS: Final = 4
"""Threads that read and decode images: what they hold is not yet counted."""


_CLIENT_GONE: Final = 499
"""nginx's number; nobody gets this answer, but it is counted."""


class HttpError(CotError):
    """An answer that is an error. `kind`: OpenAI's type of it."""

    def __init__(self, status: int, problem: str, remedy: str = "", *, kind: str = "invalid_request_error") -> None:
        super().__init__(problem, remedy)
        self.status, self.kind = status, kind


class EmbeddingService:
    """Answers requests for one embedder."""

    def __init__(self, settings: ServiceSettings, engine: EngineProcess, *, key: str = "") -> None:
        """key: what clients send as a bearer token; "" for none."""
        self.settings, self.engine, self._key = settings, engine, key.encode()
        self.metrics = ServiceMetrics()
        self.admission = Admission(settings.limits, settings.timeout_s)
        self.batcher = Batcher(engine, settings, self.admission, self.metrics)
        self._media = MediaLoader(settings)
        self._readers = ThreadPoolExecutor(_READERS, "images")
        self.metrics.watch("mbeir_cot_waiting", "Inputs accepted and not answered", lambda: self.admission.waiting)
        self.metrics.watch("mbeir_cot_waiting_bytes", "Bodies and images held", lambda: self.admission.bytes)
        self.metrics.watch("mbeir_cot_engine_up", "Whether the engine runs", lambda: self.engine.alive)

    def app(self) -> FastAPI:
        app = FastAPI(title="mbeir-cot embeddings", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/v1/embeddings", self._answered(self.embeddings), methods=["POST"])
        app.add_api_route("/v1/models", self._answered(self.models), methods=["GET"])
        app.add_api_route("/health", self._answered(self.health), methods=["GET"])
        app.add_api_route("/metrics", self.render_metrics, methods=["GET"])
        return app

    async def health(self, request: Request) -> Response:
        self.batcher.check()
        return JSONResponse({"status": "ok"})

    async def render_metrics(self) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        self._authorise(request)
        facts = self.engine.facts
        one = {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "mbeir-cot"}
        more = {"dim": facts.dim, "sha256": facts.sha256} if facts is not None else {}
        return JSONResponse({"object": "list", "data": [one | more]})

    async def embeddings(self, request: Request) -> Response:
        self._authorise(request)
        self.batcher.check()
        with self.admission.hold() as held:
            body = await self._read_body(request, held)
            parsed = await asyncio.to_thread(_parse, body) if len(body) > 1 << 20 else _parse(body)
            self._check(parsed)
            inputs = parsed.inputs(self.settings.limits)
            held.take(inputs=len(inputs))
            embedding = asyncio.ensure_future(self._embed(parsed, inputs, held))
            embedded = await self._unless_gone(request, embedding)
            content = answer(self.settings.name, parsed, embedded)
        logger.info("%d inputs, %d of them reason", len(embedded), sum(one.reasoned for one in embedded))
        return Response(orjson.dumps(content), media_type="application/json")

    async def _embed(self, parsed: EmbeddingRequest, inputs: Sequence[ServiceInput], held: Held) -> list[Embedded]:
        queries = parsed.input_type == "query"
        route = ROUTES[parsed.route] if queries else None
        works = []
        for at, one in enumerate(inputs):
            content = await self._decode(at, one, held)
            works.append(Work(content, one.instruction or DEFAULT_INSTRUCTION, route))
        embedded: list[Embedded] = []
        for at, outcome in enumerate(await self.batcher.embed(works)):
            if isinstance(outcome, Refused):
                raise HttpError(400, f"input {at}: {outcome.problem}", outcome.remedy)
            if isinstance(outcome, Failed):
                raise HttpError(500, f"input {at}: {outcome.problem}", "see the log of the service", kind="server_error")
            embedded.append(outcome)
            self.metrics.embedded.labels("candidate" if not queries else "reasoning" if outcome.reasoned else "bypass").inc()
            self.metrics.tokens.labels("prompt").inc(outcome.prompt_tokens)
            self.metrics.tokens.labels("trace").inc(outcome.tokens)
            self.metrics.cut.inc(not outcome.ended)
        return embedded

    async def _decode(self, at: int, one: ServiceInput, held: Held) -> Any:
        """The input as `TraceEmbedder` takes it."""
        if not one.urls:
            return "\n".join(one.texts)
        pictures = []
        for number, url in enumerate(one.urls):
            name = f"input {at}, image {number}"
            picture = await asyncio.get_running_loop().run_in_executor(self._readers, self._media.load, name, url)
            held.take(size=3 * picture.width * picture.height)
            pictures.append(picture)
        if len(pictures) == 1:
            return "\n".join(one.texts) or None, pictures[0]
        rest = iter(pictures)
        return [part.text if isinstance(part, TextPart) else next(rest) for part in one.parts]

    async def _read_body(self, request: Request, held: Held) -> bytes:
        most = int(self.settings.limits.body_mib * 2**20)
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                async for block in request.stream():
                    held.take(size=len(block))
                    body += block
                    if len(body) > most:
                        said = f"the request has more than {self.settings.limits.body_mib:g} MiB"
                        raise HttpError(413, said, "send fewer inputs")
        except TimeoutError:
            raise HttpError(408, f"the request was not sent within {self.settings.timeout_s:g} s") from None
        return bytes(body)

    def _check(self, parsed: EmbeddingRequest) -> None:
        if parsed.model not in (None, self.settings.name):
            raise HttpError(404, f"the model {parsed.model!r} is not served here", f"name {self.settings.name}, or none")
        facts = self.engine.facts
        if parsed.dimensions is not None and facts is not None and parsed.dimensions > facts.dim:
            raise HttpError(400, f"{parsed.dimensions:,} dimensions of {facts.dim:,}", "ask for fewer, or leave it out")

    def _authorise(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
        if self._key and not hmac.compare_digest(given, self._key):
            raise HttpError(401, "the key is missing or wrong", "send it as a bearer token", kind="authentication_error")

    async def _unless_gone(self, request: Request, embedding: asyncio.Future[list[Embedded]]) -> list[Embedded]:
        """The embeddings. Gives up when the client goes away, or after `timeout_s`."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((embedding, gone), timeout=self.settings.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if embedding.done():
                return embedding.result()
            if gone.done():
                raise HttpError(_CLIENT_GONE, "the client has gone")
            raise HttpError(
                504,
                f"no answer within {self.settings.timeout_s:g} s",
                "send fewer inputs, or try later",
                kind="server_error",
            )
        finally:
            gone.cancel()
            embedding.cancel()

    def _answered(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            began = time.perf_counter()
            try:
                response = await handle(request)
            except CotError as error:
                response = self._error(error)
                if isinstance(error, Unavailable) and request.method == "POST":  # not a look at /health
                    self.metrics.refused.labels(error.reason).inc()
            except ClientDisconnect:
                response = self._error(HttpError(_CLIENT_GONE, "the client has gone"))
            except Exception:
                logger.exception("a fault of the service")
                response = self._error(HttpError(500, "a fault of the service", "see its log", kind="server_error"))
            if request.url.path.startswith("/v1/"):
                self.metrics.requests.labels(str(response.status_code)).inc()
                self.metrics.request_seconds.observe(time.perf_counter() - began)
            return response

        return respond

    def _error(self, error: CotError) -> Response:
        status = error.status if isinstance(error, HttpError | Unavailable) else 400 if isinstance(error, InputError) else 500
        kind = error.kind if isinstance(error, HttpError) else "invalid_request_error" if status == 400 else "server_error"
        message = f"{error.problem}: {error.remedy}" if error.remedy else error.problem
        headers = {}
        if isinstance(error, Unavailable):
            headers["Retry-After"] = f"{error.retry_after_s:.0f}"
            kind = "rate_limit_error" if status == 429 else kind
        return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status, headers)


def _parse(body: bytes) -> EmbeddingRequest:
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise HttpError(400, f"{where}: {said}" if where else said, "see docs/serving.md") from None


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
