"""Verification: the verifier compares a trace with the positive, by one question or by one for each facet.

`verify.form: single` asks about the answer. `verify.form: facets` asks about the answer and then, all at once, about each
facet: the prompts differ only in their last lines, so their common beginning is in the server's cache by then. Each question
costs one token, whose log-probabilities give the confidence.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from pipeline.annotate.annotation import Annotation, Attempt, FacetQuestion, RejectionCause
from pipeline.mbeir.image_store import ImageProblem
from pipeline.teacher.cached_client import CachedTeacherClient, failure_of
from pipeline.teacher.requests import judge_fields, judge_prompt, read_judgement
from pipeline.traces.families import ANSWER, Facet, family_of
from pipeline.traces.judgements import VERIFY
from pipeline.traces.prompting import image_paths, verify_facet_prompt, verify_prompt
from prompts import Prompt, PromptSet
from schemas.config import BuildConfig
from schemas.judgement import Judgement
from schemas.mbeir import Candidate
from schemas.record import Stage, VerifyReason
from schemas.teacher import TeacherAnswer
from schemas.trace import Trace


class _Judged(NamedTuple):
    """What a question led to: its confidence, or why there is none."""

    answer: TeacherAnswer
    confidence: float | None
    failure: RejectionCause | None


class Verification:
    """Asks the verifier; holds what its questions share."""

    def __init__(self, config: BuildConfig, verifier: CachedTeacherClient) -> None:
        self._settings = config.verify
        self._verifier = verifier
        self._config = config.verifier or config.teacher
        self.prompts = PromptSet.load(self._config.prompts)
        self._fields = judge_fields(VERIFY, self._config)

    async def verify(self, annotation: Annotation, attempt: Attempt) -> RejectionCause | None:
        """Asks about the attempt's trace and keeps the confidences in it; returns why it is not kept, if so.

        Raises ImageProblem for the query's image; a target's unusable image is a rejection.
        """
        trace, query, target = attempt.trace, annotation.query, annotation.target
        if not self._settings.enabled or trace is None:
            return None
        if target is None:
            return RejectionCause(
                Stage.VERIFY, VerifyReason.TARGET_MISSING, f"no pool holds {', '.join(query.pos_cand_list[:3])}"
            )
        try:
            return (
                await self._answer(annotation, attempt, trace, target)
                or await self._facets(annotation, attempt, trace, target)
                or self._verdict(attempt)
            )
        except ImageProblem as problem:
            if problem.path == query.query_img_path:
                raise
            annotation.unread = problem
            return RejectionCause(Stage.VERIFY, problem.reason, f"the target's {problem.path}: {problem.detail}")

    async def confidence(self, annotation: Annotation, answer: str, target: Candidate) -> float | None:
        """P(yes) that the target supports an answer of the query's; None if the verifier gives none.

        Raises ImageProblem for an image that cannot be used.
        """
        return (await self._judge(annotation, self._answer_prompt(annotation, answer, target), target)).confidence

    def _answer_prompt(self, annotation: Annotation, answer: str, target: Candidate) -> Prompt:
        if self._settings.form == "single":
            prompt = verify_prompt(self.prompts, annotation.query, annotation.instruction, answer, target)
            return judge_prompt(prompt, VERIFY, self._config)
        return self._facet_prompt(annotation, target, ANSWER, answer)

    async def _answer(self, annotation: Annotation, attempt: Attempt, trace: Trace, target: Candidate) -> RejectionCause | None:
        prompt = self._answer_prompt(annotation, trace.answer, target)
        attempt.verify_prompt = prompt
        judged = await self._judge(annotation, prompt, target)
        attempt.verify_answer, attempt.confidence = judged.answer, judged.confidence
        return judged.failure

    async def _facets(self, annotation: Annotation, attempt: Attempt, trace: Trace, target: Candidate) -> RejectionCause | None:
        if self._settings.form == "single":
            return None
        facets = family_of(annotation.query.task_id).facets
        prompts = [
            self._facet_prompt(annotation, target, facet, said.text) for facet, said in zip(facets, trace.facets, strict=True)
        ]
        judged = await asyncio.gather(*(self._judge(annotation, prompt, target) for prompt in prompts))
        attempt.facet_questions = [
            FacetQuestion(facet.name, prompt, one.answer, one.confidence)
            for facet, prompt, one in zip(facets, prompts, judged, strict=True)
        ]
        return next((one.failure for one in judged if one.failure is not None), None)

    def _facet_prompt(self, annotation: Annotation, target: Candidate, facet: Facet, statement: str) -> Prompt:
        prompt = verify_facet_prompt(
            self.prompts, annotation.query, annotation.instruction, target, facet=facet, statement=statement
        )
        return judge_prompt(prompt, VERIFY, self._config)

    async def _judge(self, annotation: Annotation, prompt: Prompt, target: Candidate) -> _Judged:
        images = image_paths(annotation.query, target)
        asked = await self._verifier.ask("verify", annotation.id, prompt, images, fields=self._fields)
        annotation.asked += not asked.known
        if not asked.answer.ok:
            return _Judged(asked.answer, None, RejectionCause(Stage.VERIFY, *failure_of(asked.answer)))
        judged = read_judgement(asked.answer, VERIFY, self._config)
        if not isinstance(judged, Judgement):
            return _Judged(asked.answer, None, RejectionCause(Stage.VERIFY, judged.reason, judged.detail))
        return _Judged(asked.answer, judged.probability, None)

    def _verdict(self, attempt: Attempt) -> RejectionCause | None:
        """Compares the confidences with the thresholds; names every facet that is not above its own."""
        wanted, of_facets = self._settings.threshold, self._settings.facet_threshold
        low = [question for question in attempt.facet_questions if (question.confidence or 0.0) <= of_facets]
        labels = _labels(attempt, low)
        named = "; ".join(
            f"{label}: confidence {question.confidence:.3f}, more than {of_facets:g} is wanted"
            for label, question in zip(labels, low, strict=True)
        )
        if attempt.confidence is not None and attempt.confidence <= wanted:
            detail = f"confidence {attempt.confidence:.3f}, more than {wanted:g} is wanted"
            labels = (ANSWER.label, *labels) if attempt.facet_questions else ()
            return RejectionCause(Stage.VERIFY, VerifyReason.NOT_SUPPORTED, "; ".join(filter(None, (detail, named))), labels)
        return RejectionCause(Stage.VERIFY, VerifyReason.FACET_NOT_SUPPORTED, named, labels) if low else None


def _labels(attempt: Attempt, questions: list[FacetQuestion]) -> tuple[str, ...]:
    labels = {facet.name: facet.label for facet in attempt.trace.facets} if attempt.trace is not None else {}
    return tuple(labels[question.name] for question in questions)
