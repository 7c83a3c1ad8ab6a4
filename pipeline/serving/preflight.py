"""Sends an endpoint a build's requests, and reports every failure with the setting that fixes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import aiohttp

from pipeline.teacher.client import AGENT, TeacherClient
from pipeline.teacher.diagnosis import Trouble, trouble, unreachable
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.requests import Judged, Reasoned, judge, reason
from pipeline.teacher.trial_requests import STAND_IN, Questions, Sample
from pipeline.traces.judgements import ASSESS, VERIFY, Labels, needs_assessment
from schemas.config import BuildConfig
from schemas.hosting import Endpoint
from schemas.teacher import Outcome, TeacherAnswer
from schemas.teacher_config import TeacherConfig
from schemas.trace import Trace

Who = Literal["teacher", "verifier"]

_TRY: Final = {"max_attempts": 2, "try_timeout_s": 120.0, "deadline_s": 240.0}
_LISTED_S: Final = 20.0
_NO_LIST: Final = frozenset({403, 404, 405, 501})
"""The server has no list of models, or the key may not see it. Its answers show whether it has this one."""


class Finding(NamedTuple):
    """What an endpoint can or cannot do. `trouble`: why it cannot; `some_go`: other requests of the kind succeeded."""

    endpoint: str
    ability: str
    trouble: Trouble | None = None
    some_go: bool = False

    @property
    def ok(self) -> bool:
        return self.trouble is None


@dataclass
class Example:
    """A query and the answers to its requests."""

    sample: Sample
    assessed: Judged | None = None
    reasoned: Reasoned | None = None
    verified: Judged | None = None

    @property
    def answer(self) -> str:
        """The answer to verify: the teacher's, or a stand-in."""
        trace = self.reasoned.trace if self.reasoned is not None else None
        return trace.answer if isinstance(trace, Trace) else STAND_IN


@dataclass
class PreflightResult:
    """Of one endpoint. `serves`: the model's name in its answers, and its path in the list of models."""

    endpoint: Endpoint
    findings: list[Finding] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    serves: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def add(self, ability: str, trouble: Trouble | None = None, *, some_go: bool = False) -> None:
        self.findings.append(Finding(self.endpoint.url, ability, trouble, some_go))


async def preflight(
    endpoint: Endpoint, who: Who, config: BuildConfig, questions: Questions, examples: Sequence[Example]
) -> PreflightResult:
    """Sends, for each example, the requests that a build sends to this teacher or verifier, and stores the answers in it.

    Without a separate verifier, the teacher also verifies. Nothing is recorded.
    """
    settings = questions.verifier if who == "verifier" else config.teacher
    result = PreflightResult(endpoint, examples=list(examples))
    listed = await _listed(endpoint, settings)
    if isinstance(listed, str):
        result.add("reachable", unreachable(who, settings, listed))
        return result
    result.add("reachable")
    names = [str(model["id"]) for model in listed] if listed is not None else [endpoint.model]
    if endpoint.model not in names:
        served = ", ".join(names) or "nothing"
        detail = f"it serves {served}, not {endpoint.model}"
        result.add("model name", Trouble(detail, f"correct `model` of {who}.endpoints", stops=True))
        return result
    result.add("model name")
    transport = settings.transport.model_copy(update=_TRY)
    async with TeacherClient(transport.client((endpoint,)), agent=f"{AGENT} preflight") as client:
        trial = _Trial(who, settings, config, questions, client)
        await asyncio.gather(*(trial.ask(example) for example in examples))
    trial.add_findings(result)
    known = next((model for model in listed or () if model["id"] == endpoint.model), {})
    result.serves = tuple(sorted({str(value) for value in (known.get("root"), *trial.models) if value}))
    return result


class _Trial:
    """Sends the requests and collects the result of each kind, by family."""

    def __init__(
        self, who: Who, settings: TeacherConfig, config: BuildConfig, questions: Questions, client: TeacherClient
    ) -> None:
        self._who, self._settings, self._config = who, settings, config
        self._questions, self._client = questions, client
        self._results: dict[str, list[tuple[str, Trouble | None]]] = {"assess": [], "reason": [], "verify": []}
        self.models: set[str] = set()

    async def ask(self, example: Example) -> None:
        first = []
        if self._who == "teacher":
            first = [self._reason(example)]
            if needs_assessment(self._config.route):
                first.append(self._assess(example))
        await asyncio.gather(*first)
        if self._config.verify.enabled and (self._who == "verifier" or self._config.verifier is None):
            request = self._questions.verify(example.sample, example.answer)
            example.verified = await self._judge("verify", example, request, VERIFY)

    def add_findings(self, result: PreflightResult) -> None:
        """Adds one finding for each kind that succeeds, and one for each remedy of those that fail."""
        for kind, results in self._results.items():
            if not results:
                continue
            troubles: dict[str, Trouble] = {}
            families: dict[str, dict[str, None]] = {}
            for family, failure in results:
                if failure is not None:
                    troubles.setdefault(failure.remedy, failure)
                    families.setdefault(failure.remedy, {})[family] = None
            some_go = any(failure is None for _, failure in results)
            for remedy, failure in troubles.items():
                result.add(f"{kind} ({', '.join(families[remedy])})", failure, some_go=some_go)
            if not troubles:
                result.add(kind)

    async def _assess(self, example: Example) -> None:
        example.assessed = await self._judge("assess", example, self._questions.assess(example.sample), ASSESS)

    async def _reason(self, example: Example) -> None:
        request = self._questions.reason(example.sample)
        example.reasoned = await reason(self._client, request, example.sample.family)
        self._note("reason", example, request, example.reasoned.answer, example.reasoned.trace)

    async def _judge(self, kind: str, example: Example, request: TeacherRequest, labels: Labels) -> Judged:
        judged = await judge(self._client, request, labels, self._settings)
        self._note(kind, example, request, judged.answer, judged.judgement)
        return judged

    def _note(self, kind: str, example: Example, request: TeacherRequest, answer: TeacherAnswer, meaning: object) -> None:
        failure = trouble(self._who, self._settings, request, answer, meaning)
        self._results[kind].append((example.sample.family.name, failure))
        if answer.outcome is Outcome.OK:
            self.models.add(answer.model)


async def _listed(endpoint: Endpoint, settings: TeacherConfig) -> list[dict[str, Any]] | str | None:
    """The server's list of models, or what went wrong; None if it has no list."""
    client = TeacherClient(settings.transport.client((endpoint,)))  # for the headers, with the key if there is one
    try:
        timeout = aiohttp.ClientTimeout(total=_LISTED_S)
        url, headers = f"{endpoint.url.rstrip('/')}/models", client.headers(endpoint)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=settings.transport.trust_env) as session,
            session.get(url, headers=headers) as response,
        ):
            if response.status in _NO_LIST:
                return None
            if response.status != 200:
                return f"HTTP {response.status} for the list of models"
            data = await response.json(content_type=None)
            return [{**model, "id": model["id"]} for model in data["data"]]
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError):
        return "its list of models is not an OpenAI-compatible one"
