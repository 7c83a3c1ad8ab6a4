"""The rows of the dataset: records and rejections. Column names are a public interface."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from schemas.judgement import JudgementReason, Probability
from schemas.mbeir import DatasetTask, Id, Modality, Query, Split
from schemas.teacher import Outcome
from schemas.trace import FormatReason

EMB_TOKEN: Final = "<|emb|>"  # noqa: S105 (a token of text)


class Route(StrEnum):
    REASONING = "reasoning"
    BYPASS = "bypass"


class RoutePolicy(StrEnum):
    ASSESSOR = "assessor"
    """Per query: P(complex) of the teacher against a threshold (the paper's phase 1)."""
    BY_DATASET = "by-dataset"
    """CIRR, FashionIQ, OVEN and InfoSeek reason: what the paper's released counts imply."""
    BY_MODALITY = "by-modality"
    """Queries of image and text reason."""
    UTILITY = "utility"
    """Per query: what its trace was measured to do for the embedding, against a threshold (`route.utility`)."""


class Stage(StrEnum):
    """Where a query's annotation ended."""

    INPUT = "input"
    ASSESS = "assess"
    REASON = "reason"
    SCREEN = "screen"
    VERIFY = "verify"


class ScreenReason(StrEnum):
    """Why a screen rejected a well-formed trace: one value for each rule of the paper."""

    REASONING_TOO_SHORT = "reasoning_too_short"
    REASONING_TOO_LONG = "reasoning_too_long"
    ANSWER_TOO_SHORT = "answer_too_short"
    ANSWER_TOO_LONG = "answer_too_long"
    REPEATED_NGRAM = "repeated_ngram"
    NOT_ENGLISH = "not_english"
    REFUSAL = "refusal"
    PROMPT_COPIED = "prompt_copied"
    NO_SHARED_KEYWORD = "no_shared_keyword"
    ANSWER_IS_SOURCE = "answer_is_source"
    NEAR_DUPLICATE = "near_duplicate"


class VerifyReason(StrEnum):
    NOT_SUPPORTED = "not_supported"
    """The verifier's confidence is at or below the threshold."""
    FACET_NOT_SUPPORTED = "facet_not_supported"
    """The answer's confidence is above the threshold, a facet's is not; `detail` names the facets."""
    TARGET_MISSING = "target_missing"
    """No pool holds a positive of the query."""


class InputReason(StrEnum):
    EMPTY_TEXT = "empty_text"
    NO_IMAGE_PATH = "no_image_path"
    CONFLICTING_ROWS = "conflicting_rows"
    """Two input rows with the same id and different contents. The first is used; this is the other."""
    PROMPT_TOO_LONG = "prompt_too_long"
    INTERNAL_ERROR = "internal_error"
    """A bug of this program. Please report it with the detail."""


class ImageReason(StrEnum):
    """Why an image cannot be used."""

    MISSING = "image_missing"
    OUTSIDE_ROOT = "image_outside_root"
    NOT_A_FILE = "image_not_a_file"
    NOT_AN_IMAGE = "image_not_an_image"
    TRUNCATED = "image_truncated"
    TOO_MANY_PIXELS = "image_too_many_pixels"
    UNREADABLE = "image_unreadable"
    ASPECT_RATIO = "image_aspect_ratio"


REASONS: Final[frozenset[str]] = frozenset(
    str(reason)
    for reasons in (InputReason, ImageReason, FormatReason, JudgementReason, ScreenReason, VerifyReason, Outcome)
    for reason in reasons
    if reason is not Outcome.OK
)
"""Every code that a rejection may have."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordFacet(_Frozen):
    name: str
    text: str


class FacetConfidence(_Frozen):
    """P(yes) of the verifier's question about one facet."""

    name: str
    confidence: Probability


class Verdict(_Frozen):
    """The verifier's verdict. `confidence` is that of the answer; `accepted`: it is above the build's threshold."""

    accepted: bool
    confidence: Probability
    verifier: str


class Provenance(_Frozen):
    """Where a record comes from. Token counts cover all requests of the record's annotation."""

    teacher: str
    revision: str
    prompt_sha256: str
    """First 16 digits for each template that the annotation used: assess+reason+verify."""
    temperature: float | None
    """None if none was sent (`extra_body: {temperature: null}`), so the server's own applied. The same holds for the seed."""
    seed: NonNegativeInt | None
    attempts: NonNegativeInt
    """Traces requested; 0 for a query that bypasses."""
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt
    pipeline_version: str
    reveal_target: bool = False


class _QueryColumns(_Frozen):
    """The columns that records and rejections share."""

    id: Annotated[str, StringConstraints(pattern=r"^(?:train|val|test)/[a-z0-9]+/task[0-8]/[0-9]:[0-9]+$")]
    qid: Id
    dataset: str
    split: Split
    task_id: Annotated[int, Field(ge=0, le=8)]
    query_modality: Modality
    cand_modality: Modality
    instruction: str
    query_text: str | None
    query_image: str | None
    positives: tuple[Id, ...]
    hard_negatives: tuple[Id, ...]
    multiplicity: PositiveInt = 1
    """How often the input contains the row (the up-sampled union repeats rows)."""


class Record(_QueryColumns):
    """One query of the dataset."""

    route: Route
    route_policy: RoutePolicy
    assessment: Probability | None
    facets: tuple[RecordFacet, ...] = ()
    reasoning: str | None = None
    answer: str | None = None
    target: str
    verdict: Verdict | None = None
    provenance: Provenance
    facet_confidences: tuple[FacetConfidence, ...] = ()
    """With `verify.form: facets`, in the order of `facets`; otherwise empty."""
    utility: float | None = None
    """Measured by `mbeir-cot utility`, where the build was given it (`route.utility`)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.target.endswith(EMB_TOKEN) or self.target.count(EMB_TOKEN) != 1:
            raise ValueError(f"the target must end in its only {EMB_TOKEN}")
        trace = self.target.removesuffix(EMB_TOKEN)
        if "<" in trace or ">" in trace:
            raise ValueError("the target contains a tag")
        if self.route is Route.BYPASS:
            if trace or self.facets or self.reasoning or self.answer or self.verdict or self.facet_confidences:
                raise ValueError("a bypass record has no trace")
        elif not (self.facets and self.reasoning and self.answer and trace):
            raise ValueError("a reasoning record needs facets, reasoning, answer and target")
        return self


class Rejection(_QueryColumns):
    """A query without a record, and the reason."""

    stage: Stage
    reason: str
    detail: str
    raw_answer: str
    """The teacher's last output; empty if there was none."""
    assessment: Probability | None
    attempts: NonNegativeInt
    confidence: Probability | None = None
    """The verifier's in the answer of the last trace; None where that was not verified."""
    facet_confidences: tuple[FacetConfidence, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is no reason for a rejection")
        return self


def record_id(split: Split, dataset: str, task_id: int, qid: str) -> str:
    return f"{split}/{dataset}/task{task_id}/{qid}"


def query_record_id(query: Query, split: Split) -> str:
    """The id of the query's record or rejection."""
    task = query.dataset_task
    return record_id(split, task.dataset, task.task_id, query.qid)


def task_of_record(identifier: str) -> DatasetTask:
    """The dataset-task in a record's id. Raises ValueError for what is no such id."""
    _, dataset, task, _ = identifier.split("/", 3)
    return DatasetTask.parse(f"{dataset}_{task}")
