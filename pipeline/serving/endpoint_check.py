"""Checks external endpoints before a build sends its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from pipeline.ledger.request_key import Identity
from pipeline.ledger.served import same_as_before
from pipeline.serving.preflight import Example, PreflightResult, Who, preflight
from pipeline.teacher.trial_requests import Questions
from schemas.config import BuildConfig
from schemas.errors import ConfigError, InputError
from schemas.mbeir import SPLITS, Split
from schemas.teacher_config import TeacherConfig

_EACH: Final = 2
"""Queries of each family: one that a server refuses may be at fault itself."""


def check_endpoints(config: BuildConfig, external: Mapping[Who, TeacherConfig], ledger: str) -> None:
    """Raises ConfigError where every request of a kind would be refused, or say nothing that can be used, and where the servers
    tell of another model than that whose answers the ledger (its location) holds.

    A server that cannot be reached, or has no answer now, is the client's to wait for. Nothing is recorded.
    """
    asyncio.run(_check(config, external, ledger))


async def _check(config: BuildConfig, external: Mapping[Who, TeacherConfig], ledger: str) -> None:
    questions = Questions(config)
    own = config.input.record_split
    splits: tuple[Split, ...] = (own, *(split for split in SPLITS if split != own))
    try:
        samples = await asyncio.to_thread(questions.samples, splits, each=_EACH)
    except InputError:  # no query that can be asked: the build tells what is wrong with each
        return
    asked = [(who, endpoint) for who, one in external.items() for endpoint in one.endpoints]
    results = await asyncio.gather(
        *(preflight(endpoint, who, config, questions, [Example(sample) for sample in samples]) for who, endpoint in asked)
    )
    for (who, _), result in zip(asked, results, strict=True):
        _require(who, result)
    for who, one in external.items():
        told = [name for (whose, _), result in zip(asked, results, strict=True) if whose == who for name in result.serves]
        same_as_before(ledger, who, Identity(one), told)


def _require(who: Who, result: PreflightResult) -> None:
    for finding in result.findings:
        found = finding.trouble
        if found is not None and found.stops and not finding.some_go:
            raise ConfigError(
                f"the {who} at {result.endpoint.url} cannot do what the build asks: {finding.ability}: {found.detail}",
                f"{found.remedy}; `mbeir-cot teacher check CONFIG` shows all that it asks",
            )
