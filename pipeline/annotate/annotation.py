"""One query and everything that happened to it in the steps, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.annotate.screens import ScreenInput
from pipeline.mbeir.image_store import ImageProblem
from prompts import Prompt
from schemas.mbeir import Candidate, Query, Split
from schemas.record import Route, Stage
from schemas.teacher import TeacherAnswer
from schemas.trace import Trace


@dataclass(frozen=True, slots=True)
class RejectionCause:
    """Why an annotation, or one attempt of it, ended without a record."""

    stage: Stage
    reason: str
    detail: str
    facets: tuple[str, ...] = ()
    """Labels of the facets that the verifier did not support."""

    @property
    def complaint(self) -> str:
        """What a repair tells the teacher: in short, a colon, details."""
        fault = self.reason.replace("_", " ")
        return f"{', '.join(self.facets)} not supported: {self.detail}" if self.facets else f"{fault}: {self.detail}"


@dataclass(slots=True)
class FacetQuestion:
    """What the verifier was asked about one facet (`verify.form: facets`)."""

    name: str
    prompt: Prompt
    answer: TeacherAnswer
    confidence: float | None = None


@dataclass(slots=True)
class Attempt:
    """One trace that was asked for."""

    prompt: Prompt
    answer: TeacherAnswer
    trace: Trace | None = None
    screened: ScreenInput | None = None
    verify_prompt: Prompt | None = None
    verify_answer: TeacherAnswer | None = None
    confidence: float | None = None
    """Of the answer; `facet_questions` hold the facets'."""
    facet_questions: list[FacetQuestion] = field(default_factory=list)
    rejection: RejectionCause | None = None

    @property
    def answers(self) -> list[TeacherAnswer]:
        """In the order in which they were asked for."""
        found = [self.answer, self.verify_answer, *(question.answer for question in self.facet_questions)]
        return [answer for answer in found if answer is not None]


@dataclass(slots=True)
class Annotation:
    """A query and all that happened to it."""

    id: str
    query: Query
    split: Split
    instruction: str
    target: Candidate | None
    multiplicity: int = 1
    assess_prompt: Prompt | None = None
    assess_answer: TeacherAnswer | None = None
    assessment: float | None = None
    utility: float | None = None
    """Measured of its trace, if the build was given it."""
    route: Route | None = None
    attempts: list[Attempt] = field(default_factory=list)
    rejection: RejectionCause | None = None
    asked: int = 0
    """Requests sent to a teacher; the other answers came from the ledger."""
    unread: ImageProblem | None = None
    """The unusable image, if that is why the annotation ended."""

    @property
    def accepted(self) -> Attempt | None:
        """The attempt whose trace was accepted."""
        return self.attempts[-1] if self.attempts and self.rejection is None else None

    @property
    def answers(self) -> list[TeacherAnswer]:
        """All, in the order in which they were asked for."""
        answers = [self.assess_answer] if self.assess_answer is not None else []
        for attempt in self.attempts:
            answers += attempt.answers
        return answers

    @property
    def last_answers(self) -> list[TeacherAnswer]:
        """Those of the last step, which ended the annotation: one, or those to the questions about the facets."""
        facets = [question.answer for question in self.attempts[-1].facet_questions] if self.attempts else []
        return facets or self.answers[-1:]
