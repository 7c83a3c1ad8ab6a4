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
    """Which queries are built."""

    split: Literal["train", "val", "test", "union_train"] = "train"
    """`union_train` is M-BEIR's up-sampled file: a repeated row is annotated once and counted in `multiplicity`."""
    datasets: tuple[str, ...] = ()
    """Names such as `cirr`; empty for all that are there."""
    tasks: tuple[Annotated[int, Field(ge=0, le=8)], ...] = ()
    """M-BEIR's task ids; empty for all."""
    limit: PositiveInt | None = None
    """Build only this many queries, sampled evenly by a hash of their ids. A larger limit contains a smaller one."""
    instruction: Literal["seeded", "fixed"] = "seeded"
    """Which of a dataset-task's (four) instructions a query gets: one drawn by seed and id, or always the first."""
    instruction_seed: NonNegativeInt = 0
    malformed_lines: Literal["strict", "skip"] = "strict"
    """`skip` writes malformed lines to a file and continues."""
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
    """Ask for P(complex) under the other policies too, so that a later reroute with `assessor` sends no requests."""
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
    """A trace fails if an n-gram occurs this often in the reasoning or in the answer."""
    copied_words: PositiveInt = 10
    """A run of this many of the prompt template's own words counts as copied."""
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
    """Traces requested in all. The second request tells the teacher why the first trace was rejected; later ones also raise the
    temperature."""
    temperature_step: NonNegativeFloat = 0.3
    """Added to the temperature with each attempt after the second."""
    after: tuple[Stage, ...] = (Stage.REASON, Stage.SCREEN)
    """Stages whose rejections are repaired. With `verify`, traces are selected by the target; the number of attempts in the
    provenance shows for which records."""


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
    """Recent annotations considered, of those that sent a request."""
    failures: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of requests without a usable answer above which the build stops."""
    unreachable_s: PositiveFloat = 900
    """Seconds without an answer from any server after which the build stops. A restarted server loads a large model for
    minutes."""
    rejections: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of rejected reasoning annotations above which the build stops."""
    inputs: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of queries rejected for the same image problem (such as a disk that is not mounted) above which the build stops."""


class PublishConfig(Settings):
    """When a new dataset may replace an older one."""

    least_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A dataset with fewer than this share of the old one's records or of its traces is not published, nor one without any
    record of a dataset-task that the old one has, or without a trace of one that has 20, unless `--replace` is given. A changed
    screen or threshold costs a few per cent; a missing image folder or a failing server costs more, and so does a route by
    which much fewer queries reason."""


class LedgerConfig(Settings):
    """Where the teacher's answers are kept."""

    location: str | None = None
    """A directory, or a URI that pyarrow opens (`s3://…`) [default: `ledger` in the output directory]. Builds may share it."""
    journal: Path | None = None
    """Local directory for answers that are not sealed into a segment yet, when `location` is not local."""
    segment_answers: PositiveInt = 20_000
    """Answers in a segment file."""
    fsync_s: NonNegativeFloat = 1.0
    """Seconds between syncs to disk. A power cut loses at most the answers of this time; a killed process loses none."""
    retry_failed: bool = False
    """Send permanently failed requests again (a 4xx, an answer that was cut off). Otherwise such failures are final."""


class OutputConfig(Settings):
    name: str = "M-BEIR-CoT"
    """The dataset's name on its card."""
    license: str = "mit"
    """Licence of the annotations. Images and texts keep the licences of their sources."""
    synthetic: bool = False
    """State in the card's first line and tags that the content is synthetic."""
    rows_per_shard: PositiveInt = 50_000
    with_images: bool = False
    """Add a config `with_images`, whose rows contain the query's image."""
    image_row_group_mb: Annotated[int, Field(ge=1, le=300)] = 100
    """Megabytes of images in a row group of `with_images`. Readers load a whole group; the Hub's viewer loads 300 MB at
    most."""


class BuildConfig(Settings):
    """A whole config file."""

    mbeir: Path
    """The M-BEIR root."""
    out: Path = Path("build/dataset")
    """The build's directory: `dataset/`, `ledger/` and what it needs to continue."""
    input: InputConfig = InputConfig()
    teacher: TeacherConfig
    verifier: TeacherConfig | None = None
    """A separate model for verification [default: the teacher]."""
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
    """The file that a running build locks [default: `.lock` in `out`]. If `out` lies on a file system without locks, name a
    file on a local disk (and set `ledger.journal`); builds on other machines are then not kept out."""
    workers: PositiveInt | None = None
    """Ray actors that annotate queries [default: one per 4 CPUs of the cluster]. Each has its own limit of requests in
    flight."""
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
