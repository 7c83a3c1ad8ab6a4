"""A query's journey: assess, route, reason, screen, verify, with repairs between, as one coroutine.

It decides nothing but the order: each step is a module of its own. What happened on the way is kept, attempt by attempt, so
that `mbeir-cot preview` shows the very journey that a build makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.annotate.routing import needs_assessment, route
from pipeline.annotate.screens import CountTokens, Fault, Screened, screen, word_ngrams
from pipeline.mbeir.images import ImageProblem
from pipeline.teacher.cached_client import Asker, failure_of
from pipeline.teacher.requests import judge_fields, judge_prompt, read_judgement, read_trace, reason_fields
from pipeline.traces.families import family_of
from pipeline.traces.judgements import ASSESS, VERIFY
from pipeline.traces.prompting import assess_prompt, image_paths, reason_prompt, reason_template, verify_prompt
from prompts import Prompt, PromptSet
from schemas.config import BuildConfig
from schemas.judgement import Judgement
from schemas.mbeir import Candidate, Query
from schemas.record import Route, Stage, VerifyReason
from schemas.teacher import TeacherAnswer
from schemas.trace import Malformed, Trace


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a journey, or one attempt of it, ended without a record."""

    stage: Stage
    reason: str
    detail: str


@dataclass(slots=True)
class Attempt:
    """One trace that was asked for."""

    prompt: Prompt
    answer: TeacherAnswer
    trace: Trace | None = None
    screened: Screened | None = None
    verify_prompt: Prompt | None = None
    verify_answer: TeacherAnswer | None = None
    confidence: float | None = None
    refusal: Refusal | None = None


@dataclass(slots=True)
class Journey:
    """A query and all that happened to it."""

    id: str
    query: Query
    split: str
    instruction: str
    target: Candidate | None
    multiplicity: int = 1
    assess_prompt: Prompt | None = None
    assess_answer: TeacherAnswer | None = None
    assessment: float | None = None
    route: Route | None = None
    attempts: list[Attempt] = field(default_factory=list)
    refusal: Refusal | None = None
    asked: int = 0
    """Requests that went to a teacher now; the others were in the ledger."""
    unread: ImageProblem | None = None
    """The image that could not be used, if that is why it ended."""

    @property
    def accepted(self) -> Attempt | None:
        """The attempt whose trace is kept."""
        return self.attempts[-1] if self.attempts and self.refusal is None else None

    @property
    def answers(self) -> list[TeacherAnswer]:
        found = [self.assess_answer, *(a for attempt in self.attempts for a in (attempt.answer, attempt.verify_answer))]
        return [answer for answer in found if answer is not None]


class Guide:
    """What all journeys of an annotator share."""

    def __init__(self, config: BuildConfig, teacher: Asker, verifier: Asker, count: CountTokens) -> None:
        self.config = config
        self.teacher, self.verifier = teacher, verifier
        self.count = count
        self.prompts = PromptSet.load(config.teacher.prompts)
        self.verifier_config = config.verifier or config.teacher
        self.verify_prompts = PromptSet.load(self.verifier_config.prompts)
        self._own_words: dict[str, frozenset[str]] = {}

    def own_words(self, template: str) -> frozenset[str]:
        """N-grams of a template's own words, for the rule against copying them."""
        if template not in self._own_words:
            self._own_words[template] = word_ngrams(self.prompts.own_text(template), self.config.screen.copied_words)
        return self._own_words[template]

    async def travel(self, journey: Journey) -> Journey:
        """Takes a journey to its end. Raises only what stops a build (LedgerError, Stopped, ConfigError)."""
        try:
            journey.refusal = await self._steps(journey)
        except ImageProblem as problem:
            journey.refusal = Refusal(Stage.INPUT, problem.reason, problem.detail)
            journey.unread = problem
        return journey

    async def _steps(self, journey: Journey) -> Refusal | None:
        query = journey.query
        if query.defects:
            return Refusal(Stage.INPUT, query.defects[0], f"the query is {query.query_modality} and lacks it")
        if needs_assessment(self.config.route) and (refusal := await self._assess(journey)) is not None:
            return refusal
        journey.route = route(query.dataset_task, journey.assessment, self.config.route)
        if journey.route is Route.BYPASS:
            if query.query_img_path and journey.assess_answer is None:  # nobody has looked at the image yet
                self.teacher.check_image(query.query_img_path)
            return None
        return await self._reason(journey)

    async def _assess(self, journey: Journey) -> Refusal | None:
        teacher = self.config.teacher
        prompt = judge_prompt(assess_prompt(self.prompts, journey.query, journey.instruction), ASSESS, teacher)
        journey.assess_prompt = prompt
        asked = await self.teacher.ask("assess", journey.id, prompt, image_paths(journey.query), judge_fields(ASSESS, teacher))
        journey.assess_answer, journey.asked = asked.answer, journey.asked + (not asked.known)
        if not asked.answer.ok:
            return Refusal(Stage.ASSESS, *failure_of(asked.answer))
        judged = read_judgement(asked.answer, ASSESS, teacher)
        if not isinstance(judged, Judgement):
            return Refusal(Stage.ASSESS, judged.reason, judged.detail)
        journey.assessment = judged.probability
        return None

    async def _reason(self, journey: Journey) -> Refusal | None:
        repair = self.config.repair
        complaint = ""
        for number in range(repair.attempts):
            attempt = await self._attempt(journey, number, complaint)
            refusal = attempt.refusal
            if refusal is None or refusal.stage not in repair.after or not attempt.answer.ok:
                break
            complaint = f"{refusal.reason.replace('_', ' ')}: {refusal.detail}"
        return refusal

    async def _attempt(self, journey: Journey, number: int, complaint: str) -> Attempt:
        config, query = self.config, journey.query
        family = family_of(query.task_id)
        revealed = journey.target if config.reveal_target else None
        prompt = reason_prompt(self.prompts, query, journey.instruction, complaint=complaint, revealed=revealed)
        hotter = max(0, number - 1) * config.repair.temperature_step
        fields = reason_fields(family, config.teacher, attempt=number, hotter=hotter)
        asked = await self.teacher.ask("reason", journey.id, prompt, image_paths(query, revealed), fields, number)
        journey.asked += not asked.known
        attempt = Attempt(prompt, asked.answer)
        journey.attempts.append(attempt)
        attempt.refusal = self._read(journey, attempt) or await self._verify(journey, attempt)
        return attempt

    def _read(self, journey: Journey, attempt: Attempt) -> Refusal | None:
        """Format and screens."""
        if not attempt.answer.ok:
            return Refusal(Stage.REASON, *failure_of(attempt.answer))
        query = journey.query
        trace = read_trace(attempt.answer, family_of(query.task_id))
        if isinstance(trace, Malformed):
            return Refusal(Stage.REASON, trace.reason, trace.detail)
        attempt.trace = trace
        attempt.screened = Screened(
            trace,
            query.query_txt,
            journey.instruction,
            journey.target.txt if journey.target is not None else None,
            self.own_words(reason_template(query)),
            self.count,
        )
        fault: Fault | None = screen(attempt.screened, self.config.screen)
        return Refusal(Stage.SCREEN, fault.reason, fault.detail) if fault is not None else None

    async def _verify(self, journey: Journey, attempt: Attempt) -> Refusal | None:
        if not self.config.verify.enabled or attempt.trace is None:
            return None
        query, target = journey.query, journey.target
        if target is None:
            return Refusal(Stage.VERIFY, VerifyReason.TARGET_MISSING, f"no pool holds {', '.join(query.pos_cand_list[:3])}")
        prompt = verify_prompt(self.verify_prompts, query, journey.instruction, attempt.trace.answer, target)
        prompt = judge_prompt(prompt, VERIFY, self.verifier_config)
        attempt.verify_prompt = prompt
        fields = judge_fields(VERIFY, self.verifier_config)
        try:
            asked = await self.verifier.ask("verify", journey.id, prompt, image_paths(query, target), fields)
        except ImageProblem as problem:
            if problem.path == query.query_img_path:
                raise
            journey.unread = problem
            return Refusal(Stage.VERIFY, problem.reason, f"the target's {problem.path}: {problem.detail}")
        attempt.verify_answer = asked.answer
        journey.asked += not asked.known
        if not asked.answer.ok:
            return Refusal(Stage.VERIFY, *failure_of(asked.answer))
        judged = read_judgement(asked.answer, VERIFY, self.verifier_config)
        if not isinstance(judged, Judgement):
            return Refusal(Stage.VERIFY, judged.reason, judged.detail)
        attempt.confidence = judged.probability
        threshold = self.config.verify.threshold
        if judged.probability > threshold:
            return None
        detail = f"confidence {judged.probability:.3f}, more than {threshold:g} is wanted"
        return Refusal(Stage.VERIFY, VerifyReason.NOT_SUPPORTED, detail)
