"""Checks external endpoints before a build sends its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from pipeline.ledger.request_key import Identity
from pipeline.ledger.served_models import same_as_before
from pipeline.serving.preflight import Example, PreflightResult, Who, preflight
from pipeline.teacher.trial_requests import Questions
from schemas.config import BuildConfig
from schemas.errors import ConfigError, InputError
from schemas.mbeir import SPLITS, Split
from schemas.teacher_config import TeacherConfig

_EACH: Final = 2
"""Queries per family: a single refused query may itself be at fault."""


def check_endpoints(config: BuildConfig, external: Mapping[Who, TeacherConfig], ledger: str) -> None:
    """Raises ConfigError if every request of a kind would be refused or get an unusable answer, or if the servers report
    another model than the one whose answers are in the ledger (given by its location).

    The client waits for servers that cannot be reached or do not answer now. Nothing is recorded.
    """
    asyncio.run(_check(config, external, ledger))


async def _check(config: BuildConfig, external: Mapping[Who, TeacherConfig], ledger: str) -> None:
    questions = Questions(config)
    own = config.input.record_split
    splits: tuple[Split, ...] = (own, *(split for split in SPLITS if split != own))
    try:
        samples = await asyncio.to_thread(questions.samples, splits, each=_EACH)
    except InputError:  # no usable query: the build reports what is wrong with each
        return
    asked = [(who, endpoint) for who, teacher in external.items() for endpoint in teacher.endpoints]
    results = await asyncio.gather(
        *(preflight(endpoint, who, config, questions, [Example(sample) for sample in samples]) for who, endpoint in asked)
    )
    for (who, _), result in zip(asked, results, strict=True):
        _require(who, result)
    for who, teacher in external.items():
        served = [name for (whose, _), result in zip(asked, results, strict=True) if whose == who for name in result.serves]
        same_as_before(ledger, who, Identity(teacher), served)


def _require(who: Who, result: PreflightResult) -> None:
    for finding in result.findings:
        trouble = finding.trouble
        if trouble is not None and trouble.stops and not finding.some_go:
            raise ConfigError(
                f"the {who} at {result.endpoint.url} cannot do what the build asks: {finding.ability}: {trouble.detail}",
                f"{trouble.remedy}; `mbeir-cot teacher check CONFIG` shows all requests",
            )
