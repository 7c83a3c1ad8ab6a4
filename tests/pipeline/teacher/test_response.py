"""Bodies that are no completion are refused, and so are log-probabilities that are none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.teacher.response import read_completion
from tests.pipeline.teacher.fault_server import completion


def body(logprob: Any) -> bytes:
    found = completion()
    alternatives = [{"token": "yes", "logprob": logprob}, {"token": "no", "logprob": -2.5}]
    content = [{"token": "yes", "logprob": -0.1, "top_logprobs": alternatives}]
    found["choices"][0] |= {"logprobs": {"content": content}}
    return orjson.dumps(found)


@pytest.mark.parametrize("logprob", [-0.1, 0, 1e-6, -9999.0, "-inf"])
def test_log_probabilities_are_read(logprob: Any) -> None:
    assert read_completion(body(logprob)).first_token_logprobs == {"yes": float(logprob), "no": -2.5}


@pytest.mark.parametrize("logprob", [None, "NaN", "inf", 0.9, "likely"])
def test_what_is_no_log_probability_is_no_judgement(logprob: Any) -> None:
    with pytest.raises(ValueError, match="the body is no chat completion"):
        read_completion(body(logprob))


@pytest.mark.parametrize("text", [b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_other_bodies_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="the body is no"):
        read_completion(text)
