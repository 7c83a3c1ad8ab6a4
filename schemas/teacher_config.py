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
    """Low: traces are to be right, not various. Repairs raise it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    """-1: all tokens. This and the next four are sent as they stand here, so a model's generation_config.json adds nothing."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: PositiveFloat = 1.0
    """Above 1 it also counts the words of the prompt, which an answer is told to use again."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    max_tokens: PositiveInt = 512
    """An answer that is cut off here is no trace: above what prompts and screens ask for, so that only a model that runs on
    meets it."""
    seed: NonNegativeInt = 0
    """Sent with each request: the same question gives the same answer on the same server."""


VLLM_ONLY: Final = frozenset({"top_k", "min_p", "repetition_penalty"})
"""Fields of `Sampling` that vLLM and its kin know and OpenAI's own API refuses."""

_OURS: Final = frozenset({"model", "messages", "stream", "n"})
"""What the client itself must say."""

_SAMPLED: Final = frozenset({"temperature", "seed"})
"""What repairs change and records tell."""


class TeacherConfig(Settings):
    """Where the teacher comes from and how it is asked."""

    hosting: Literal["managed", "external"] = "managed"
    """`managed`: we start vLLM and stop it. `external`: servers that run already."""
    server: ServerConfig | None = None
    """For `managed`."""
    reuse: bool = False
    """Use a server of the same settings that `mbeir-cot serve` runs on this machine, if there is one."""
    endpoints: tuple[Endpoint, ...] = ()
    """For `external`: OpenAI-compatible endpoints of the same model."""
    dialect: Literal["vllm", "openai"] = "vllm"
    """Which request fields the endpoints take. `openai`: those of OpenAI's own API and of servers that refuse all others: no
    grammars, no `top_k`, `min_p` and `repetition_penalty`, and `max_completion_tokens` for `max_tokens`."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, as they are; they go before ours, and null leaves one of ours out. Published in the
    manifest: nothing secret. `logprobs` and `top_logprobs` change the requests that have them, those for judgements."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the model's chat template, e.g. `{enable_thinking: false}`: an answer must come without thinking aloud."""
    prompts: str = "full"
    """A prompt set: `full` for real teachers, `pocket` for the tiny one, or a directory of templates."""
    grammar: bool | Literal["bounded"] = True
    """Hold traces to their form while decoding. Off for endpoints without structured outputs: the parser is the same.

    `bounded` limits the lengths of the lines as well, for a model that runs on until `sampling.max_tokens`. It costs a server
    1.4 ms a token of each answer, one after the other, and 9 s for each family after it starts (Qwen's 151,665 tokens)."""
    judgements: Literal["logprobs", "stated"] = "logprobs"
    """`stated` asks for a number in words, for endpoints without log-probabilities."""
    images: Literal["path", "data_url"] = "path"
    """`path` where client and server share a file system: nothing is encoded or sent. For `external` [default: data_url], as
    a server reads files only when it was started with `--allowed-local-media-path`."""
    max_pixels: PositiveInt = 1_000_000
    """Larger images are reduced before they are sent, once, by us."""
    max_facet_chars: PositiveInt = 600
    """For `grammar: bounded` only."""
    max_answer_chars: PositiveInt = 400
    """For `grammar: bounded` only."""
    sampling: Sampling = Sampling()
    transport: Transport = Transport()

    @property
    def left_out(self) -> frozenset[str]:
        """Fields that are not sent although we would."""
        return frozenset(name for name, value in self.extra_body.items() if value is None)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Those that follow from other keys."""
        if isinstance(data, dict):
            follow: dict[str, Any] = {"images": "data_url"} if data.get("hosting") == "external" else {}
            follow |= {"grammar": False} if data.get("dialect") == "openai" else {}
            data = follow | data
        return data

    @field_validator("extra_body", "chat_template_kwargs")
    @classmethod
    def _as_json(cls, given: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(_OURS & given.keys()):
            raise ValueError(f"{', '.join(ours)} cannot be given here; the client says it itself")
        if sampled := [name for name in sorted(_SAMPLED) if given.get(name) is not None]:
            raise ValueError(f"set sampling.{sampled[0]} (repairs change it); here it can be left out, by null")
        found: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))  # YAML has dates and keys that JSON has not
        return found

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.hosting == "managed" and self.server is None:
            raise ValueError("hosting: managed needs `server`, the settings of the vLLM server to start")
        if self.hosting == "managed" and self.transport.trust_env:
            raise ValueError("transport.trust_env is for `hosting: external`: servers of ours are asked past all proxies")
        if self.hosting == "external" and not self.endpoints:
            raise ValueError("hosting: external needs `endpoints`, a list of servers that run")
        return self

    @model_validator(mode="after")
    def _sayable(self) -> Self:
        """Refuses settings that the dialect cannot express, instead of dropping them."""
        if self.dialect != "openai":
            return self
        if self.hosting != "external":
            raise ValueError("dialect: openai is for `hosting: external`; our own servers are vLLM's")
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
