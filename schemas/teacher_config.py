"""Settings of a teacher: hosting, request fields, sampling."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher import Transport


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sampling(Settings):
    """How a trace is sampled. Judgements are always greedy."""

    temperature: NonNegativeFloat = 0.2
    """Low: traces should be right, not varied. Repairs raise it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    """-1: all tokens. This and the next four are always sent, so a model's generation_config.json has no effect."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: PositiveFloat = 1.0
    """Above 1 it also penalises the prompt's words, which an answer is told to use."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    max_tokens: PositiveInt = 512
    """An answer that is cut off here is not a trace. The default exceeds what prompts and screens ask for, so that only a model
    that does not stop reaches it."""
    seed: NonNegativeInt = 0
    """Sent with each request: the same request gets the same answer from the same server."""


VLLM_ONLY: Final = frozenset({"top_k", "min_p", "repetition_penalty"})
"""Fields of `Sampling` that vLLM and similar servers accept and OpenAI's own API refuses."""

_OURS: Final = frozenset({"model", "messages", "stream", "n"})
"""Fields that the client itself must set."""

_SAMPLED: Final = frozenset({"temperature", "seed"})
"""Fields that repairs change and records report."""


class TeacherConfig(Settings):
    """Where the teacher runs and how requests to it are made."""

    hosting: Literal["managed", "external"] = "managed"
    """`managed`: the build starts and stops vLLM. `external`: servers that already run."""
    server: ServerConfig | None = None
    """For `managed`."""
    reuse: bool = False
    """Use a server with the same settings that `mbeir-cot serve` runs on this machine, if there is one."""
    endpoints: tuple[Endpoint, ...] = ()
    """For `external`: OpenAI-compatible endpoints of the same model."""
    dialect: Literal["vllm", "openai"] = "vllm"
    """Which request fields the endpoints take. `openai`: those of OpenAI's own API and of servers that refuse all others: no
    grammars, no `top_k`, `min_p` and `repetition_penalty`, and `max_completion_tokens` for `max_tokens`."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, sent unchanged. They override the client's own; null leaves a field out. Published in
    the manifest, so no secrets. `logprobs` and `top_logprobs` apply only to requests that have them, those for judgements."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the model's chat template, e.g. `{enable_thinking: false}`: an answer must not contain thinking."""
    prompts: str = "full"
    """A prompt set: `full` for real teachers, `pocket` for the tiny one, or a directory of templates."""
    grammar: bool | Literal["bounded"] = True
    """Constrain traces to their form while decoding. Off for endpoints without structured outputs; the parser is the same.

    `bounded` also limits the lengths of lines, for a model that does not stop before `sampling.max_tokens`. It costs a server
    1.4 ms per token of each answer, not in parallel, and 9 s per family after its start (Qwen's 151,665 tokens)."""
    judgements: Literal["logprobs", "stated"] = "logprobs"
    """`stated` asks for a number in words, for endpoints without log-probabilities."""
    images: Literal["path", "data_url"] = "path"
    """`path` if client and server share a file system: no image is encoded or sent. The default for `external` is data_url,
    because a server reads files only if it was started with `--allowed-local-media-path`."""
    max_pixels: PositiveInt = 1_000_000
    """Larger images are reduced once, before they are sent."""
    max_facet_chars: PositiveInt = 600
    """For `grammar: bounded` only."""
    max_answer_chars: PositiveInt = 400
    """For `grammar: bounded` only."""
    sampling: Sampling = Sampling()
    transport: Transport = Transport()

    @property
    def left_out(self) -> frozenset[str]:
        """Fields of the client that `extra_body` leaves out."""
        return frozenset(name for name, value in self.extra_body.items() if value is None)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Sets defaults that follow from other keys."""
        if isinstance(data, dict):
            follow: dict[str, Any] = {"images": "data_url"} if data.get("hosting") == "external" else {}
            follow |= {"grammar": False} if data.get("dialect") == "openai" else {}
            data = follow | data
        return data

    @field_validator("extra_body", "chat_template_kwargs")
    @classmethod
    def _as_json(cls, given: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(_OURS & given.keys()):
            raise ValueError(f"{', '.join(ours)} cannot be given here; the client sets it")
        if sampled := [name for name in sorted(_SAMPLED) if given.get(name) is not None]:
            raise ValueError(f"set sampling.{sampled[0]} (repairs change it); here null leaves it out")
        checked: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))  # YAML has dates and keys that JSON has not
        return checked

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.hosting == "managed" and self.server is None:
            raise ValueError("hosting: managed needs `server`, the settings of the vLLM server to start")
        if self.hosting == "managed" and self.transport.trust_env:
            raise ValueError("transport.trust_env is for `hosting: external`: managed servers are reached without a proxy")
        if self.hosting == "external" and not self.endpoints:
            raise ValueError("hosting: external needs `endpoints`, a list of running servers")
        return self

    @model_validator(mode="after")
    def _sayable(self) -> Self:
        """Refuses settings that the dialect cannot express, instead of dropping them."""
        if self.dialect != "openai":
            return self
        if self.hosting != "external":
            raise ValueError("dialect: openai is for `hosting: external`; managed servers are vLLM's")
        if self.grammar:
            raise ValueError("dialect: openai has no grammars; set grammar: false (the parser reads the same form)")
        if self.images == "path":
            raise ValueError("dialect: openai reads no files; set images: data_url")
        if self.chat_template_kwargs:
            raise ValueError("dialect: openai has no chat_template_kwargs; extra_body sends any field, e.g. reasoning_effort")
        for name in sorted(VLLM_ONLY):
            if getattr(self.sampling, name) != Sampling.model_fields[name].default:
                raise ValueError(f"dialect: openai has no {name}; leave sampling.{name} out, or send it in extra_body")
        return self
