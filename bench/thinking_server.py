"""A chat endpoint whose model thinks before it answers, unless its chat template is told not to: by the oracle's answers.

* `hidden`: the server takes all that is said for thinking (a grammar that was forced right after the opening tag, or an answer
  cut off before thinking ended): `content` is null and the words are in `reasoning_content`.
* `first`: thinking in `reasoning`, then the answer as it was asked for; log-probabilities are of the thinking's tokens.
* `aloud`: no reasoning parser; the thoughts stand in the answer, before what the grammar holds.
"""

from __future__ import annotations

from typing import Any

from bench import oracle_server

_THOUGHTS = "Okay, let me look at the picture first."


def answer(body: dict[str, Any], garbage: str = "", *, kind: str = "hidden") -> dict[str, Any]:
    found = oracle_server.answer(body, garbage)
    if body.get("chat_template_kwargs", {}).get("enable_thinking") is False:
        return found
    choice, first = found["choices"][0], {"token": "Okay", "logprob": -0.1}
    message, said = choice["message"], choice["message"]["content"]
    if choice["logprobs"] is not None:
        opening = {"token": "<think>", "logprob": -0.001} if kind == "aloud" else first
        alternatives = [opening, {"token": "Let", "logprob": -3.0}, {"token": "So", "logprob": -4.0}]
        choice["logprobs"]["content"] = [opening | {"top_logprobs": alternatives}]
    if kind == "hidden":
        message |= {"content": None, "reasoning_content": said}
    elif kind == "first":
        message["reasoning"] = _THOUGHTS
    else:
        message["content"] = f"<think>\n{_THOUGHTS}\n</think>\n\n{said}"
    return found
