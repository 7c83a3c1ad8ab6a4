"""A finished journey as rows: a record, a rejection, or (with `on_reject: bypass`) both."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from pipeline.annotate.routing import needs_assessment
from pipeline.annotate.screens import normalised
from pipeline.annotate.steps import Guide, Journey, Refusal
from pipeline.files.redaction import Places
from pipeline.traces.prompting import reason_template, verify_template
from schemas import __version__
from schemas.judgement import Probability
from schemas.mbeir import Query
from schemas.record import EMB_TOKEN, Provenance, Record, RecordFacet, Rejection, Route, Stage, Verdict

_DIGITS: Final = 6
"""Of probabilities: more would only show the noise of the server's arithmetic."""

_RAW_CHARACTERS: Final = 4000


class RowMaker:
    """Turns journeys into validated rows; holds what all of them share."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self._config = guide.config
        self._shas: dict[str, str] = {}
        self._places = Places.of(guide.config)

    def rows(self, journey: Journey) -> tuple[Record | None, Rejection | None]:
        refusal = journey.refusal
        if refusal is None:
            return self._record(journey, bypass=journey.route is Route.BYPASS), None
        rejection = self._rejection(journey, refusal)
        spared = self._config.on_reject == "bypass" and refusal.stage not in (Stage.INPUT, Stage.ASSESS)
        return (self._record(journey, bypass=True) if spared else None), rejection

    def rejected(self, journey: Journey, stage: Stage, reason: str, detail: str) -> Rejection:
        """A rejection that comes from outside of the journey."""
        return self._rejection(journey, Refusal(stage, reason, detail))

    def _identity(self, journey: Journey) -> dict[str, Any]:
        query = journey.query
        task = query.dataset_task
        return {
            "id": journey.id,
            "qid": query.qid,
            "dataset": task.dataset,
            "split": journey.split,
            "task_id": query.task_id,
            "query_modality": query.query_modality,
            "cand_modality": task.cand_modality,
            "instruction": journey.instruction,
            "query_text": query.query_txt,
            "query_image": query.query_img_path,
            "positives": query.pos_cand_list,
            "hard_negatives": query.neg_cand_list,
            "multiplicity": journey.multiplicity,
        }

    def _record(self, journey: Journey, *, bypass: bool) -> Record:
        accepted = None if bypass else journey.accepted
        trace = accepted.trace if accepted is not None else None
        verdict = None
        if accepted is not None and accepted.confidence is not None:
            verifier = self._guide.verifier.identity
            verdict = Verdict(accepted=True, confidence=_rounded(accepted.confidence), verifier=verifier.name)
        return Record(
            **self._identity(journey),
            route=Route.BYPASS if trace is None else Route.REASONING,
            route_policy=self._config.route.policy,
            assessment=_rounded(journey.assessment) if journey.assessment is not None else None,
            facets=tuple(RecordFacet(name=facet.name, text=facet.text) for facet in trace.facets) if trace is not None else (),
            reasoning=trace.reasoning if trace is not None else None,
            answer=trace.answer if trace is not None else None,
            target=f"{trace.reasoning}\n{trace.answer}{EMB_TOKEN}" if trace is not None else EMB_TOKEN,
            verdict=verdict,
            provenance=self._provenance(journey),
        )

    def _provenance(self, journey: Journey) -> Provenance:
        teacher, identity = self._config.teacher, self._guide.teacher.identity
        sampling, left_out = teacher.sampling, teacher.left_out
        answers = journey.answers
        hotter = max(0, len(journey.attempts) - 2) * self._config.repair.temperature_step
        return Provenance(
            teacher=identity.name,
            revision=identity.revision,
            prompt_sha256=self._prompts_sha256(journey.query),
            temperature=None if "temperature" in left_out else round(sampling.temperature + hotter, 4),
            seed=None if "seed" in left_out else sampling.seed + max(0, len(journey.attempts) - 1),
            attempts=len(journey.attempts),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            pipeline_version=__version__,
            reveal_target=self._config.reveal_target,
        )

    def _prompts_sha256(self, query: Query) -> str:
        names = [reason_template(query), *([verify_template(query)] if self._config.verify.enabled else [])]
        if needs_assessment(self._config.route):
            names.insert(0, "assess")
        key = "+".join(names)
        if key not in self._shas:
            sets = [self._guide.verify_prompts if name.startswith("verify") else self._guide.prompts for name in names]
            shas = [prompts.sha256(name) for prompts, name in zip(sets, names, strict=True)]
            self._shas[key] = "+".join(sha[:16] for sha in shas)
        return self._shas[key]

    def _rejection(self, journey: Journey, refusal: Refusal) -> Rejection:
        raw = next((attempt.answer.text for attempt in reversed(journey.attempts) if attempt.answer.text), "")
        if not raw and journey.assess_answer is not None:
            raw = journey.assess_answer.text
        return Rejection(
            **self._identity(journey),
            stage=refusal.stage,
            reason=str(refusal.reason),
            detail=self._places.scrubbed(refusal.detail),
            raw_answer=raw[:_RAW_CHARACTERS],
            assessment=_rounded(journey.assessment) if journey.assessment is not None else None,
            attempts=len(journey.attempts),
        )


def near_duplicate_key(record: Record) -> int:
    """Equal for records whose query and normalised answer are the same; 0 for those that do not reason. 63 bits."""
    if record.route is Route.BYPASS:
        return 0
    query = f"{record.dataset}\0{record.task_id}\0{normalised(record.query_text or '')}\0{record.query_image or ''}"
    digest = hashlib.blake2b(f"{query}\0{normalised(record.answer or '')}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) | 1


def _rounded(value: Probability) -> float:
    return round(value, _DIGITS)
