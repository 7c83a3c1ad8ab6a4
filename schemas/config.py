"""Settings of a build as far as the teacher goes: what the YAML files under ``configs/`` hold."""

from __future__ import annotations

import json
from pathlib import Path
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
from schemas.judgement import Probability
from schemas.mbeir import DATASET_IDS
from schemas.record import RoutePolicy, Stage
from schemas.teacher import Transport


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sampling(_Settings):
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
        """What the dialect has no words for is refused here, not left out in silence."""
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


class InputConfig(_Settings):
    """Which queries."""

    split: Literal["train", "val", "test", "union_train"] = "train"
    """`union_train` is M-BEIR's up-sampled file: its repeated rows are asked once and counted in `multiplicity`."""
    datasets: tuple[str, ...] = ()
    """Names such as `cirr`; empty for all that are there."""
    tasks: tuple[Annotated[int, Field(ge=0, le=8)], ...] = ()
    """M-BEIR's task ids; empty for all."""
    limit: PositiveInt | None = None
    """Only so many queries, drawn evenly by a hash of their ids: a larger limit contains a smaller one."""
    instruction: Literal["seeded", "fixed"] = "seeded"
    """Which of the (four) instructions of a dataset-task a query gets: one drawn by seed and id, or always the first."""
    instruction_seed: NonNegativeInt = 0
    malformed_lines: Literal["strict", "skip"] = "strict"
    """`skip` records malformed lines in a file and goes on."""
    image_roots: tuple[Path, ...] = ()
    """Further directories that symbolic links below the M-BEIR root may lead into."""
    candidate_cache: Path | None = None
    """Where converted candidate pools are kept [default: $MBEIR_COT_CACHE, or the user's cache directory]."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.datasets:
            if name not in DATASET_IDS:
                raise ValueError(f"input.datasets: unknown dataset {name!r}; known: {', '.join(DATASET_IDS)}")
        return self


class RouteConfig(_Settings):
    """Which queries reason."""

    policy: RoutePolicy = RoutePolicy.ASSESSOR
    threshold: Probability = 0.5
    """For `assessor`: P(complex) from which a query reasons."""
    always_assess: bool = False
    """Ask for P(complex) under the other policies too, so that a later re-route with `assessor` costs nothing."""


class ScreenConfig(_Settings):
    """Bounds of the rule filters. The defaults are the paper's; lengths are in the teacher's tokens."""

    reasoning_tokens: tuple[NonNegativeInt, PositiveInt] = (16, 256)
    answer_tokens: tuple[NonNegativeInt, PositiveInt] = (2, 64)
    ngram: PositiveInt = 6
    """Words in a row that count as repeated."""
    ngram_times: PositiveInt = 3
    """Times that an n-gram may not stand in the reasoning or in the answer."""
    copied_words: PositiveInt = 10
    """So many words in a row that are the prompt template's own count as copied from it."""
    tokenizer: str | None = None
    """A directory or Hub repository with the tokenizer.json to count with [default: the teacher's model]."""


class VerifyConfig(_Settings):
    enabled: bool = True
    threshold: Probability = 0.7
    """Kept above this."""


class RepairConfig(_Settings):
    """How a trace that was refused is asked for again."""

    attempts: PositiveInt = 3
    """Traces asked for in all. The second shows the teacher why the first was refused; later ones are hotter as well."""
    temperature_step: NonNegativeFloat = 0.3
    after: tuple[Stage, ...] = (Stage.REASON, Stage.SCREEN)
    """Which refusals are repaired. With `verify` among them traces are selected by the target (it is told apart by the
    number of attempts in the provenance)."""


class StopConfig(_Settings):
    """When a build gives up early instead of burning GPU-hours."""

    window: PositiveInt = 200
    """Last annotations looked at, of those that asked the teacher something."""
    failures: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of requests without a usable answer above which the build stops."""
    unreachable_s: PositiveFloat = 900
    """Seconds for which no server may answer at all; a large model that is started again loads for minutes."""
    rejections: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of rejected reasoning annotations above which the build stops."""
    inputs: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of queries refused for one fault of their image (a disk that is not mounted) above which the build stops."""


class PublishConfig(_Settings):
    """What may take the place of an older dataset."""

    least_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A dataset with fewer than this share of the records of the one in its place is not published, nor one that has no record
    of a dataset-task that the old one has, unless `--replace` is given. A screen or threshold moves a few per cent; a missing
    folder of images or a refusing server moves more."""


class LedgerConfig(_Settings):
    """Where the teacher's answers are kept."""

    location: str | None = None
    """A directory, or a URI that pyarrow opens (`s3://…`) [default: `ledger` in the output directory]. Builds may share it."""
    journal: Path | None = None
    """Local directory for answers that are not sealed into a segment yet, when `location` is not local."""
    segment_answers: PositiveInt = 20_000
    """Answers in a segment file."""
    fsync_s: NonNegativeFloat = 1.0
    """Answers are on disk for good after this many seconds (a killed process loses none; a power cut at most these)."""


class OutputConfig(_Settings):
    name: str = "M-BEIR-CoT"
    """Shown on the card."""
    license: str = "mit"
    """Of the annotations. Images and texts keep those of their sources."""
    synthetic: bool = False
    """Says in the card's first line and tags that the content is synthetic."""
    rows_per_shard: PositiveInt = 50_000
    with_images: bool = False
    """Adds a config `with_images` whose rows hold the query's image."""
    image_row_group_mb: Annotated[int, Field(ge=1, le=300)] = 100
    """Images in a row group of `with_images`, in MB: a reader takes a whole group at once, the Hub's viewer 300 MB at most."""


class BuildConfig(_Settings):
    """A whole config file."""

    mbeir: Path
    """The M-BEIR root."""
    out: Path = Path("build/dataset")
    """The build's directory: `dataset/`, `ledger/` and what it needs to continue."""
    input: InputConfig = InputConfig()
    teacher: TeacherConfig
    verifier: TeacherConfig | None = None
    """Another model for verification; the teacher itself if there is none."""
    route: RouteConfig = RouteConfig()
    screen: ScreenConfig = ScreenConfig()
    verify: VerifyConfig = VerifyConfig()
    repair: RepairConfig = RepairConfig()
    on_reject: Literal["reject", "bypass"] = "reject"
    """What becomes of a reasoning query without an accepted trace: a rejection, or a bypass record beside its rejection."""
    reveal_target: bool = False
    """For ablations: the teacher sees the target's text while it reasons. Stamped on every record."""
    lock: Path | None = None
    """The file that is locked while a build is at work in `out` [default: `.lock` in it]. Name one on a local disk where `out`
    lies on a file system without locks (and set `ledger.journal`); builds of other machines are not kept out then."""
    workers: PositiveInt | None = None
    """Ray actors that run the queries' annotations [default: one for 4 CPUs of the cluster]. Each has limits of its own."""
    early_stop: StopConfig = StopConfig()
    publish: PublishConfig = PublishConfig()
    ledger: LedgerConfig = LedgerConfig()
    output: OutputConfig = OutputConfig()

    def named_endpoints(self) -> tuple[Endpoint, ...]:
        """Those of the teacher and the verifier that the config names; managed servers have none here."""
        return self.teacher.endpoints + (self.verifier.endpoints if self.verifier is not None else ())

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for name, teacher in (("teacher", self.teacher), ("verifier", self.verifier)):
            if teacher is None or teacher.images != "path" or teacher.server is None or not self.input.image_roots:
                continue
            if teacher.hosting == "managed" and teacher.server.media_root is None:
                raise ValueError(
                    f"input.image_roots: the {name}'s server reads images by path below the M-BEIR root only; set "
                    f"{name}.images: data_url, or {name}.server.media_root to a directory that holds all of them"
                )
        return self
