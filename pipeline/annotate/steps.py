"""A query's annotation: assess, route, reason, screen, verify, with repairs between, as one coroutine.

This module decides only the order; each step has its own module. Every attempt is kept, so `mbeir-cot preview` shows exactly
the annotation that a build makes.
"""

from __future__ import annotations

from typing import Any

from pipeline.annotate.annotation import Annotation, Attempt, RejectionCause
from pipeline.annotate.measured_utility import Utilities
from pipeline.annotate.routing import route
from pipeline.annotate.screens import ScreenFailure, ScreenInput, screen, word_ngrams
from pipeline.annotate.verification import Verification
from pipeline.mbeir.image_store import ImageProblem
from pipeline.teacher.cached_client import CachedTeacherClient, failure_of
from pipeline.teacher.requests import judge_fields, judge_prompt, read_judgement, read_trace, reason_fields
from pipeline.traces.families import family_of
from pipeline.traces.judgements import ASSESS, needs_assessment
from pipeline.traces.prompting import assess_prompt, image_paths, reason_prompt, reason_template
from pipeline.traces.token_counts import CountTokens
from prompts import PromptSet
from schemas.config import BuildConfig
from schemas.judgement import Judgement
from schemas.record import Route, Stage
from schemas.trace import Malformed


class Annotator:
    """Takes queries through the steps."""

    def __init__(
        self, config: BuildConfig, teacher: CachedTeacherClient, verifier: CachedTeacherClient, count: CountTokens
    ) -> None:
        self.config = config
        self.teacher, self.verifier = teacher, verifier
        self.count = count
        self.prompts = PromptSet.load(config.teacher.prompts)
        self._verification = Verification(config, verifier)
        self.verify_prompts = self._verification.prompts
        self._utilities = Utilities(config.route.utility) if config.route.utility is not None else None
        self._own_words: dict[str, frozenset[str]] = {}
        self._assess_fields = judge_fields(ASSESS, config.teacher)
        self._reason_fields: dict[tuple[str, int], dict[str, Any]] = {}

    def own_words(self, template: str) -> frozenset[str]:
        """N-grams of a template's own words, for the screen against copying the prompt."""
        if template not in self._own_words:
            self._own_words[template] = word_ngrams(self.prompts.own_text(template), self.config.screen.copied_words)
        return self._own_words[template]

    async def annotate(self, annotation: Annotation) -> Annotation:
        """Takes an annotation to its end. Raises only what stops a build (LedgerError, Stopped, ConfigError)."""
        try:
            annotation.rejection = await self._steps(annotation)
        except ImageProblem as problem:
            annotation.rejection = RejectionCause(Stage.INPUT, problem.reason, problem.detail)
            annotation.unread = problem
        return annotation

    async def _steps(self, annotation: Annotation) -> RejectionCause | None:
        query = annotation.query
        if query.defects:
            return RejectionCause(Stage.INPUT, query.defects[0], f"the query is {query.query_modality} and lacks it")
        if needs_assessment(self.config.route) and (cause := await self._assess(annotation)) is not None:
            return cause
        annotation.utility = self._utilities.of(query) if self._utilities is not None else None
        annotation.route = route(query.dataset_task, annotation.assessment, self.config.route, annotation.utility)
        if annotation.route is Route.BYPASS:
            if query.query_img_path and annotation.assess_answer is None:  # no step has opened the image yet
                self.teacher.check_image(query.query_img_path)
            return None
        return await self._reason(annotation)

    async def _assess(self, annotation: Annotation) -> RejectionCause | None:
        teacher = self.config.teacher
        prompt = judge_prompt(assess_prompt(self.prompts, annotation.query, annotation.instruction), ASSESS, teacher)
        annotation.assess_prompt = prompt
        asked = await self.teacher.ask(
            "assess", annotation.id, prompt, image_paths(annotation.query), fields=self._assess_fields
        )
        annotation.assess_answer, annotation.asked = asked.answer, annotation.asked + (not asked.known)
        if not asked.answer.ok:
            return RejectionCause(Stage.ASSESS, *failure_of(asked.answer))
        judged = read_judgement(asked.answer, ASSESS, teacher)
        if not isinstance(judged, Judgement):
            return RejectionCause(Stage.ASSESS, judged.reason, judged.detail)
        annotation.assessment = judged.probability
        return None

    async def _reason(self, annotation: Annotation) -> RejectionCause | None:
        repair = self.config.repair
        complaint = ""
        for number in range(repair.attempts):
            attempt = await self._attempt(annotation, number, complaint)
            cause = attempt.rejection
            if cause is None or cause.stage not in repair.after or not attempt.answer.ok:
                break
            complaint = cause.complaint
        return cause

    async def _attempt(self, annotation: Annotation, number: int, complaint: str) -> Attempt:
        config, query = self.config, annotation.query
        family = family_of(query.task_id)
        revealed = annotation.target if config.reveal_target else None
        prompt = reason_prompt(self.prompts, query, annotation.instruction, complaint=complaint, revealed=revealed)
        if (family.name, number) not in self._reason_fields:
            hotter = max(0, number - 1) * config.repair.temperature_step
            self._reason_fields[family.name, number] = reason_fields(family, config.teacher, attempt=number, hotter=hotter)
        fields = self._reason_fields[family.name, number]
        asked = await self.teacher.ask(
            "reason", annotation.id, prompt, image_paths(query, revealed), fields=fields, attempt=number
        )
        annotation.asked += not asked.known
        attempt = Attempt(prompt, asked.answer)
        annotation.attempts.append(attempt)
        attempt.rejection = self._read(annotation, attempt) or await self._verification.verify(annotation, attempt)
        return attempt

    def _read(self, annotation: Annotation, attempt: Attempt) -> RejectionCause | None:
        """Parses and screens the trace."""
        if not attempt.answer.ok:
            return RejectionCause(Stage.REASON, *failure_of(attempt.answer))
        query = annotation.query
        trace = read_trace(attempt.answer, family_of(query.task_id))
        if isinstance(trace, Malformed):
            return RejectionCause(Stage.REASON, trace.reason, trace.detail)
        attempt.trace = trace
        attempt.screened = ScreenInput(
            trace,
            query.query_txt,
            annotation.instruction,
            annotation.target.txt if annotation.target is not None else None,
            self.own_words(reason_template(query.task_id)),
            self.count,
        )
        failure: ScreenFailure | None = screen(attempt.screened, self.config.screen)
        return RejectionCause(Stage.SCREEN, failure.reason, failure.detail) if failure is not None else None
