"""Settings of a build: what its YAML files under ``configs/`` hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from schemas.hosting import Endpoint
from schemas.judgement import Probability
from schemas.mbeir import DATASET_IDS, Split
from schemas.record import RoutePolicy, Stage
from schemas.teacher_config import Settings, TeacherConfig


class InputConfig(Settings):
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

    @property
    def record_split(self) -> Split:
        """The split that records belong to."""
        return "train" if self.split == "union_train" else self.split

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.datasets:
            if name not in DATASET_IDS:
                raise ValueError(f"input.datasets: unknown dataset {name!r}; known: {', '.join(DATASET_IDS)}")
        return self


class RouteConfig(Settings):
    """Which queries reason."""

    policy: RoutePolicy = RoutePolicy.ASSESSOR
    threshold: Probability = 0.5
    """For `assessor`: P(complex) from which a query reasons."""
    always_assess: bool = False
    """Ask for P(complex) under the other policies too, so that a later re-route with `assessor` costs nothing."""
    utility: Path | None = None
    """The file that `mbeir-cot utility` wrote: the records' column `utility`, whatever the policy is."""
    utility_threshold: float = 0.0
    """For `utility`: a query reasons if its utility is above this. One without a utility bypasses."""

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.policy is RoutePolicy.UTILITY and self.utility is None:
            raise ValueError("route.policy: utility needs route.utility, the file that `mbeir-cot utility RUN DATASET` wrote")
        return self


class ScreenConfig(Settings):
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


class VerifyConfig(Settings):
    enabled: bool = True
    form: Literal["single", "facets"] = "single"
    """`single`: one question, about the answer. `facets`: one about each facet and one about the answer, in prompts that differ
    only at their ends; records and rejections keep each confidence (`facet_confidences`), and a rejection names the facets."""
    threshold: Probability = 0.7
    """Kept if the answer's confidence is above this."""
    facet_threshold: Probability = 0.5
    """For `facets`: and if each facet's is above this. 0: the facets' confidences are recorded, and decide nothing."""


class RepairConfig(Settings):
    """How a new trace is requested after a rejected one."""

    attempts: PositiveInt = 3
    """Traces asked for in all. The second shows the teacher why the first was refused; later ones are hotter as well."""
    temperature_step: NonNegativeFloat = 0.3
    after: tuple[Stage, ...] = (Stage.REASON, Stage.SCREEN)
    """Which refusals are repaired. With `verify` among them traces are selected by the target (it is told apart by the
    number of attempts in the provenance)."""


class AcceptConfig(Settings):
    """How many records a build is to have. Queries are asked in an order drawn by a hash of their ids until there are so many;
    the queries after that are left, and are no part of the dataset."""

    records: PositiveInt | None = None
    """Of each kind; null: all queries are asked. Fewer where the input ends before."""
    per: Literal["all", "dataset-task"] = "all"
    """What a kind is: all queries together, or those of a dataset-task."""
    count: Literal["all", "reasoning"] = "all"
    """Which records count: every one, or those that reason (the bypass records that come up meanwhile are kept beside them)."""


class StopConfig(Settings):
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


class PublishConfig(Settings):
    """When a new dataset may replace an older one."""

    least_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A dataset with fewer than this share of the records of the one in its place is not published, nor one that has no record
    of a dataset-task that the old one has, unless `--replace` is given. A screen or threshold moves a few per cent; a missing
    folder of images or a refusing server moves more."""


class LedgerConfig(Settings):
    """Where the teacher's answers are kept."""

    location: str | None = None
    """A directory, or a URI that pyarrow opens (`s3://…`) [default: `ledger` in the output directory]. Builds may share it."""
    journal: Path | None = None
    """Local directory for answers that are not sealed into a segment yet, when `location` is not local."""
    segment_answers: PositiveInt = 20_000
    """Answers in a segment file."""
    fsync_s: NonNegativeFloat = 1.0
    """Answers are on disk for good after this many seconds (a killed process loses none; a power cut at most these)."""
    retry_failed: bool = False
    """Send permanently failed requests again (a 4xx, an answer that was cut off). Otherwise such failures stay."""


class OutputConfig(Settings):
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


class BuildConfig(Settings):
    """A whole config file."""

    mbeir: Path
    """The M-BEIR root."""
    out: Path = Path("build/dataset")
    """The build's directory: `dataset/`, `ledger/` and what it needs to continue."""
    input: InputConfig = InputConfig()
    teacher: TeacherConfig
    verifier: TeacherConfig | None = None
    """Another model for verification; the teacher itself if there is none."""
    accept: AcceptConfig = AcceptConfig()
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
