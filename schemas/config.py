"""Settings of a build as far as the teacher goes: what the YAML files under ``configs/`` hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher import Transport


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sampling(_Settings):
    """How a trace is sampled. Judgements are always greedy."""

    temperature: NonNegativeFloat = 0.2
    """Low: traces are to be right, not various. Repairs raise it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 512
    """The grammar ends a trace before; this is for endpoints without grammars."""
    seed: NonNegativeInt = 0
    """Sent with each request: the same question gives the same answer on the same server."""


class TeacherConfig(_Settings):
    """Where the teacher comes from and how it is asked."""

    hosting: Literal["managed", "external"] = "managed"
    """`managed`: we start vLLM and stop it. `external`: servers that run already."""
    server: ServerConfig | None = None
    """For `managed`."""
    reuse: bool = False
    """Use a server of the same settings that `mbeir-cot serve` runs on this machine, if there is one."""
    endpoints: tuple[Endpoint, ...] = ()
    """For `external`: OpenAI-compatible endpoints of the same model."""
    prompts: str = "full"
    """A prompt set: `full` for real teachers, `pocket` for the tiny one, or a directory of templates."""
    grammar: bool = True
    """Hold traces to their form while decoding. Off for endpoints without structured outputs: the parser is the same."""
    judgements: Literal["logprobs", "stated"] = "logprobs"
    """`stated` asks for a number in words, for endpoints without log-probabilities."""
    images: Literal["path", "data_url"] = "path"
    """`path` where client and server share a file system: nothing is encoded or sent."""
    max_pixels: PositiveInt = 1_000_000
    """Larger images are reduced before they are sent, once, by us."""
    max_facet_chars: PositiveInt = 600
    max_answer_chars: PositiveInt = 400
    sampling: Sampling = Sampling()
    transport: Transport = Transport()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.hosting == "managed" and self.server is None:
            raise ValueError("hosting: managed needs `server`, the settings of the vLLM server to start")
        if self.hosting == "external" and not self.endpoints:
            raise ValueError("hosting: external needs `endpoints`, a list of servers that run")
        return self


class BuildConfig(_Settings):
    """A whole config file."""

    mbeir: Path
    """The M-BEIR root."""
    teacher: TeacherConfig
