"""One answer in the ledger: its Arrow columns, and conversion from and to a `TeacherAnswer`."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from pipeline.ledger.request_key import FINGERPRINT_BYTES
from schemas.construct import construct
from schemas.teacher import Outcome, TeacherAnswer

Entry = dict[str, Any]
"""A row of JSON types. The fingerprint is hexadecimal digits in journals and bytes in segments."""

SCHEMA: Final = pa.schema(
    [
        pa.field("fingerprint", pa.binary(FINGERPRINT_BYTES), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("attempt", pa.int16()),
        pa.field("outcome", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("logprobs", pa.list_(pa.struct([pa.field("token", pa.string()), pa.field("logprob", pa.float64())]))),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("latency_s", pa.float32()),
        pa.field("total_s", pa.float32()),
        pa.field("http_attempts", pa.int16()),
        pa.field("model", pa.string()),
        pa.field("system_fingerprint", pa.string()),
        pa.field("asked_at", pa.float64()),
    ]
)
"""`kind`: assess, reason or verify. `subject`: the id of the query that sent the request first. `asked_at`: Unix time."""

ANSWER_COLUMNS: Final = [name for name in SCHEMA.names if name not in ("kind", "attempt", "asked_at")]
"""The columns that `to_answer` needs."""

TRANSIENT: Final = frozenset({Outcome.EXHAUSTED_RETRIES, Outcome.DEADLINE, Outcome.LOST_WITH_SERVER})
"""Outcomes that say nothing about the request: they are recorded, and the request is owed again."""

_OUTCOMES: Final = {str(outcome): outcome for outcome in Outcome}

_LEAST_LOGPROB: Final = -40.0
"""Tokens that a grammar masked have log-probabilities near minus infinity; they are dropped."""


def to_entry(answer: TeacherAnswer, fingerprint: bytes, kind: str, attempt: int, asked_at: float) -> Entry:
    return {
        "fingerprint": fingerprint.hex(),
        "kind": kind,
        "subject": answer.key,
        "attempt": attempt,
        "outcome": str(answer.outcome),
        "detail": answer.detail,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "logprobs": [
            {"token": token, "logprob": logprob}
            for token, logprob in answer.first_token_logprobs.items()
            if logprob > _LEAST_LOGPROB
        ],
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "latency_s": answer.latency_s,
        "total_s": answer.total_s,
        "http_attempts": answer.attempts,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
        "asked_at": asked_at,
    }


def to_answer(entry: Entry) -> TeacherAnswer:
    """The original answer, without the endpoint (addresses are not stored) and without masked log-probabilities."""
    fields = {
        "key": entry["subject"],
        "outcome": _OUTCOMES[entry["outcome"]],
        "detail": entry["detail"],
        "text": entry["text"],
        "finish_reason": entry["finish_reason"],
        "first_token_logprobs": {item["token"]: item["logprob"] for item in entry["logprobs"]},
        "prompt_tokens": entry["prompt_tokens"],
        "completion_tokens": entry["completion_tokens"],
        "latency_s": entry["latency_s"],
        "total_s": entry["total_s"],
        "attempts": entry["http_attempts"],
        "model": entry["model"],
        "fingerprint": entry["system_fingerprint"],
        "endpoint": "",
    }
    return construct(TeacherAnswer, fields)
