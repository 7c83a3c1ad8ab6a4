"""Turns a finished annotation into rows: a record, a rejection, or (with `on_reject: bypass`) both."""

from __future__ import annotations

from typing import Any, Final

from pipeline.annotate.annotation import Annotation, Attempt, RejectionCause
from pipeline.annotate.steps import Annotator
from pipeline.files.redaction import Places
from pipeline.traces.judgements import needs_assessment
from pipeline.traces.prompting import FACET_TEMPLATE, reason_template, verify_template
from schemas import __version__
from schemas.construct import construct
from schemas.judgement import Probability
from schemas.record import EMB_TOKEN, FacetConfidence, Provenance, Record, RecordFacet, Rejection, Route, Stage
from schemas.trace import Trace

_DIGITS: Final = 6
"""Digits of probabilities; further ones are numerical noise of the server."""

_RAW_CHARACTERS: Final = 4000


class RecordBuilder:
    """Turns annotations into validated rows."""

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self._config = annotator.config
        self._shared: dict[tuple[int, int], dict[str, Any]] = {}
        self._places = Places.of(annotator.config)

    def rows(self, annotation: Annotation) -> tuple[Record | None, Rejection | None]:
        cause = annotation.rejection
        if cause is None:
            return self._record(annotation, bypass=annotation.route is Route.BYPASS), None
        rejection = self._rejection(annotation, cause)
        spared = self._config.on_reject == "bypass" and cause.stage not in (Stage.INPUT, Stage.ASSESS)
        return (self._record(annotation, bypass=True) if spared else None), rejection

    def rejected(self, annotation: Annotation, stage: Stage, reason: str, detail: str) -> Rejection:
        """A rejection with a cause outside the annotation."""
        return self._rejection(annotation, RejectionCause(stage, reason, detail))

    def _query_columns(self, annotation: Annotation) -> dict[str, Any]:
        query = annotation.query
        task = query.dataset_task
        return {
            "id": annotation.id,
            "qid": query.qid,
            "dataset": task.dataset,
            "split": annotation.split,
            "task_id": query.task_id,
            "query_modality": query.query_modality,
            "cand_modality": task.cand_modality,
            "instruction": annotation.instruction,
            "query_text": query.query_txt,
            "query_image": query.query_img_path,
            "positives": query.pos_cand_list,
            "hard_negatives": query.neg_cand_list,
            "multiplicity": annotation.multiplicity,
        }

    def _record(self, annotation: Annotation, *, bypass: bool) -> Record:
        accepted = None if bypass else annotation.accepted
        trace = accepted.trace if accepted is not None else None
        verdict = None
        if accepted is not None and accepted.confidence is not None:
            verifier = self._annotator.verifier.identity
            verdict = {"accepted": True, "confidence": _rounded(accepted.confidence), "verifier": verifier.name}
        row = self._query_columns(annotation) | {  # validated as a whole
            "route": Route.BYPASS if trace is None else Route.REASONING,
            "route_policy": self._config.route.policy,
            "assessment": _rounded(annotation.assessment) if annotation.assessment is not None else None,
            "facets": _facets(trace) if trace is not None else (),
            "reasoning": trace.reasoning if trace is not None else None,
            "answer": trace.answer if trace is not None else None,
            "target": f"{trace.reasoning}\n{trace.answer}{EMB_TOKEN}" if trace is not None else EMB_TOKEN,
            "verdict": verdict,
            "provenance": self._provenance(annotation),
            "facet_confidences": _facet_confidences(accepted),
            "utility": _rounded(annotation.utility) if annotation.utility is not None else None,
        }
        return Record.model_validate(row)

    def _provenance(self, annotation: Annotation) -> Provenance:
        key = (annotation.query.task_id, len(annotation.attempts))
        if key not in self._shared:
            self._shared[key] = self._shared_provenance(*key)
        answers = annotation.answers
        counts = {
            "prompt_tokens": sum([answer.prompt_tokens for answer in answers]),
            "completion_tokens": sum([answer.completion_tokens for answer in answers]),
        }
        return construct(Provenance, self._shared[key] | counts)

    def _shared_provenance(self, task_id: int, attempts: int) -> dict[str, Any]:
        """What the provenance of all records of a task with as many attempts says, validated once."""
        teacher, identity = self._config.teacher, self._annotator.teacher.identity
        sampling, left_out = teacher.sampling, teacher.left_out
        hotter = max(0, attempts - 2) * self._config.repair.temperature_step
        provenance = Provenance(
            teacher=identity.name,
            revision=identity.revision,
            prompt_sha256=self._prompts_sha256(task_id),
            temperature=None if "temperature" in left_out else round(sampling.temperature + hotter, 4),
            seed=None if "seed" in left_out else sampling.seed + max(0, attempts - 1),
            attempts=attempts,
            prompt_tokens=0,
            completion_tokens=0,
            pipeline_version=__version__,
            reveal_target=self._config.reveal_target,
        )
        return vars(provenance)

    def _prompts_sha256(self, task_id: int) -> str:
        verify = self._config.verify
        verified = FACET_TEMPLATE if verify.form == "facets" else verify_template(task_id)
        names = ["assess"] if needs_assessment(self._config.route) else []
        names += [reason_template(task_id), *([verified] if verify.enabled else [])]
        sets = [self._annotator.verify_prompts if name.startswith("verify") else self._annotator.prompts for name in names]
        return "+".join(prompts.sha256(name)[:16] for prompts, name in zip(sets, names, strict=True))

    def _rejection(self, annotation: Annotation, cause: RejectionCause) -> Rejection:
        last = annotation.attempts[-1] if annotation.attempts else None
        raw = next((attempt.answer.text for attempt in reversed(annotation.attempts) if attempt.answer.text), "")
        if not raw and annotation.assess_answer is not None:
            raw = annotation.assess_answer.text
        return Rejection(
            **self._query_columns(annotation),
            stage=cause.stage,
            reason=str(cause.reason),
            detail=self._places.scrubbed(cause.detail),
            raw_answer=raw[:_RAW_CHARACTERS],
            assessment=_rounded(annotation.assessment) if annotation.assessment is not None else None,
            attempts=len(annotation.attempts),
            confidence=_rounded(last.confidence) if last is not None and last.confidence is not None else None,
            facet_confidences=_facet_confidences(last),
        )


def _facets(trace: Trace) -> tuple[RecordFacet, ...]:
    """Of texts that the trace has validated."""
    return tuple([construct(RecordFacet, {"name": facet.name, "text": facet.text}) for facet in trace.facets])


def _facet_confidences(attempt: Attempt | None) -> tuple[FacetConfidence, ...]:
    questions = attempt.facet_questions if attempt is not None else ()
    return tuple(
        FacetConfidence(name=question.name, confidence=_rounded(question.confidence))
        for question in questions
        if question.confidence is not None
    )


def _rounded(value: Probability) -> float:
    return round(value, _DIGITS)
