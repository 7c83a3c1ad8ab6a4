"""The request fields for each kind of server: vLLM's own fields, or only those that OpenAI's API takes.

Fields are translated before a request's fingerprint is computed, so that it covers what is sent. An image's cache key is not
part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.teacher.request_images import EncodedImage
from schemas.teacher_config import VLLM_ONLY, TeacherConfig

_GUIDES: Final = frozenset({"structured_outputs"})
_OF_JUDGEMENTS: Final = frozenset({"logprobs", "top_logprobs"})


def spoken(fields: Mapping[str, Any], config: TeacherConfig) -> dict[str, Any]:
    """The fields of a request as these endpoints take them, with the user's own."""
    sent = dict(fields)
    if config.dialect == "openai":
        sent = {name: value for name, value in sent.items() if name not in VLLM_ONLY | _GUIDES}
        sent["max_completion_tokens"] = sent.pop("max_tokens")
    if config.chat_template_kwargs:
        sent["chat_template_kwargs"] = config.chat_template_kwargs
    for name, value in config.extra_body.items():
        if name in _OF_JUDGEMENTS and name not in sent:
            continue  # servers refuse one of the two without the other
        if value is None:
            sent.pop(name, None)
        else:
            sent[name] = value
    return sent


def image_part(image: EncodedImage, config: TeacherConfig) -> dict[str, Any]:
    """An image as a part of a chat message. The file's digest serves vLLM as its cache key."""
    part = {"type": "image_url", "image_url": {"url": image.url}}
    return part | ({"uuid": image.sha256} if config.dialect == "vllm" else {})
