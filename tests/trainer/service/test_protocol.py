"""Requests in every form that OpenAI's and vLLM's embedding APIs take, and OpenAI's answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import InputError
from schemas.service import ServiceLimits
from trainer.service.protocol import Embedded, EmbeddingRequest, ServiceInput, answer

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "make it black"}


def parsed(**fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.model_validate_json(json.dumps(fields))


def inputs(**fields: Any) -> list[ServiceInput]:
    return parsed(**fields).inputs(ServiceLimits(inputs=3, images=2, chars=50))


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"input": "a"}, ["a"]),
        ({"input": ["a", "b"]}, ["a", "b"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"]),
        ({"input": [{"role": "user", "content": "a"}]}, ["a"]),
        ({"messages": [[{"role": "user", "content": "a"}], [user(TEXT)]]}, ["a", "make it black"]),
        ({"messages": [user(TEXT, IMAGE)]}, ["make it black"]),
        ({"messages": [user({"type": "input_text", "text": "b"}, {"type": "input_image", "image_url": "data:,x"})]}, ["b"]),
    ],
)
def test_every_form_of_input_is_read(fields: dict[str, Any], texts: list[str]) -> None:
    assert ["".join(one.texts) for one in inputs(**fields)] == texts


def test_images_and_their_order_are_kept() -> None:
    (one,) = inputs(messages=[user(IMAGE, TEXT, {"type": "image_url", "image_url": "data:image/png;base64,BBBB"})])
    assert [part.type for part in one.parts] == ["image_url", "text", "image_url"]
    assert one.urls == ["data:image/png;base64,AAAA", "data:image/png;base64,BBBB"]


def test_the_instruction_is_one_for_all_one_each_or_the_system_message() -> None:
    assert [one.instruction for one in inputs(input=["a", "b"], instruction="Find it.")] == ["Find it."] * 2
    assert [one.instruction for one in inputs(input=["a", "b"], instruction=["x", "y"])] == ["x", "y"]
    system = {"role": "system", "content": "Find the town."}
    assert [one.instruction for one in inputs(messages=[system, user(TEXT)])] == ["Find the town."]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "input is missing"),
        ({"input": "a", "messages": []}, "not both"),
        ({"input": [1, 2]}, "tokens are not taken"),
        ({"input": [[1, 2]]}, "tokens are not taken"),
        ({"input": 3}, "input is a text"),
        ({"input": []}, "at least 1 item"),
        ({"input": "a", "route": "sometimes"}, "'learned', 'never' or 'always'"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "Extra inputs"),
        ({"input": "a", "dimensions": 0}, "greater than 0"),
        ({"input": ["a", "b"], "instruction": ["x"]}, "1 instructions for 2 inputs"),
        ({"input": "a", "input_type": "candidate", "instruction": "x"}, "candidates never reason"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "'system', 'developer' or 'user'"),
        ({"messages": [user({"type": "video_url", "video_url": "x"})]}, "does not match any of the expected tags"),
    ],
)
def test_what_is_no_request_is_refused_by_one_message(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(**fields)
    (error,) = caught.value.errors()
    assert said in error["msg"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": ["a"] * 4}, "4 inputs, more than 3"),
        ({"input": "a" * 51}, "more than 50 characters"),
        ({"input": "a", "instruction": "a" * 51}, "more than 50 characters"),
        ({"input": ["a", "  "]}, "input 1 has neither text nor image"),
        ({"messages": [user(IMAGE, IMAGE, IMAGE)]}, "3 images, more than 2"),
        ({"messages": [user(IMAGE, IMAGE)], "input_type": "candidate"}, "2 images, more than 1"),
        ({"messages": [user(TEXT), user(TEXT)]}, "one user message is expected"),
        ({"messages": [[]]}, "one user message is expected"),
        ({"messages": [{"role": "system", "content": "x"}, user(TEXT)], "instruction": "y"}, "cannot be its instruction"),
        ({"messages": [{"role": "system", "content": "x"}, user(TEXT)], "input_type": "document"}, "cannot be its instruction"),
    ],
)
def test_limits_are_kept(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        inputs(**fields)


VECTOR = np.array([0.6, -0.8, 0.0, 0.0], np.float32)


def test_an_answer_has_openais_fields_and_the_route() -> None:
    rows = [Embedded(VECTOR, 7, True, True, "Source: a.", 0.25, 5, -0.1, True), Embedded(VECTOR, 3, p_direct=0.9)]
    said = answer("trace", parsed(input=["a", "b"]), rows)
    assert said["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    first, second = said["data"]
    assert first["embedding"] == VECTOR.tolist()
    assert (first["route"], first["p_reasoning"], first["trace"], first["trace_tokens"]) == ("reasoning", 0.75, "Source: a.", 5)
    assert (first["trace_confidence"], first["fell_back"]) == (-0.1, True)
    assert (second["index"], second["route"], second["trace"]) == (1, "bypass", None)
    assert (second["trace_confidence"], second["fell_back"]) == (None, False)
    (candidate,) = answer("trace", parsed(input="a", input_type="candidate"), [Embedded(VECTOR, 7)])["data"]
    assert candidate == {"object": "embedding", "index": 0, "embedding": VECTOR.tolist()}


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=16).filter(lambda v: abs(v[0]) > 0.01), st.integers(1, 2))
def test_base64_keeps_every_bit_and_fewer_dimensions_are_unit_vectors(values: list[float], dims: int) -> None:
    vector = np.array(values, np.float32)
    row = Embedded(vector, 1)
    (full,) = answer("m", parsed(input="a", encoding_format="base64"), [row])["data"]
    assert np.frombuffer(base64.b64decode(full["embedding"]), "<f4").tolist() == vector.tolist()
    (short,) = answer("m", parsed(input="a", dimensions=dims), [row])["data"]
    assert len(short["embedding"]) == dims
    assert np.linalg.norm(short["embedding"]) == pytest.approx(1, abs=1e-5)
    assert np.dot(short["embedding"], vector[:dims]) > 0
