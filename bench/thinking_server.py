"""A chat endpoint whose model thinks before it answers, unless its chat template disables it. Its answers are the oracle's.

* `hidden`: the server treats the whole output as thinking (because a grammar applied right after the opening tag, or because the
  output was truncated before thinking ended): `content` is null and the text is in `reasoning_content`.
* `first`: thinking in `reasoning`, then the answer as requested; log-probabilities are those of the thinking tokens.
* `aloud`: no reasoning parser; the thoughts are part of the answer, before the text that the grammar constrains.
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
