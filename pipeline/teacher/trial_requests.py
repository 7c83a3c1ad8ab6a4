"""Sample requests for a few real queries, for `mbeir-cot teacher check` and a build's preflight.

They are made by the same functions as a build's requests, images included, so a server treats them as it will treat the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from pipeline.mbeir.candidates import CandidateLookup
from pipeline.mbeir.image_store import ImageProblem
from pipeline.mbeir.instructions import FixedChoice, InstructionTable
from pipeline.mbeir.jsonl import scan_rows
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.stores import build_store
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.request_images import EncodedImage, ImageEncoder
from pipeline.teacher.requests import judge_request, reason_request
from pipeline.traces.families import ANSWER, FAMILIES, Family, family_of
from pipeline.traces.judgements import ASSESS, VERIFY
from pipeline.traces.prompting import assess_prompt, image_paths, reason_prompt, verify_facet_prompt, verify_prompt
from prompts import Prompt, PromptSet
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, Candidate, DatasetTask, Query, Split
from schemas.teacher_config import TeacherConfig

STAND_IN: Final = "a picture that fits the request"
"""The answer to verify if the teacher has given none."""

_LOOKED_AT: Final = 200
"""Queries of a file that are tried until one is usable: images may be missing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A real query with its first positive."""

    family: Family
    query: Query
    target: Candidate
    instruction: str


class Questions:
    """Makes the requests of a build for samples."""

    def __init__(self, config: BuildConfig) -> None:
        self._config = config
        self._verifier = config.verifier or config.teacher
        self._layout = Layout.open(config.mbeir)
        store = build_store(config)
        self._encoders = [ImageEncoder.of(teacher, store) for teacher in (config.teacher, self._verifier)]
        self._prompts = [PromptSet.load(teacher.prompts) for teacher in (config.teacher, self._verifier)]

    def samples(self, splits: tuple[Split, ...], *, each: int = 1, skip: int = 0) -> list[Sample]:
        """`each` queries per family of the config's datasets, from the first split that exists, after `skip` others.

        Only queries whose images can be used. Raises InputError if there are none.
        """
        table = InstructionTable.load(self._layout.instructions)
        samples = []
        for family in FAMILIES.values():
            for query, target in islice(self._usable_queries(family, splits), skip, skip + each):
                samples.append(Sample(family, query, target, table.for_query(query, FixedChoice(), split="val")))
        if not samples:
            raise InputError(
                f"{self._config.mbeir} has no usable query for a trial request",
                "`mbeir-cot mbeir check` lists what is missing; name other datasets or a smaller --skip",
            )
        return samples

    def assess(self, sample: Sample) -> TeacherRequest:
        prompt = assess_prompt(self._prompts[0], sample.query, sample.instruction)
        return judge_request(f"{sample.query.qid}/assess", prompt, self._images(sample, 0), ASSESS, self._config.teacher)

    def reason_prompt(self, sample: Sample) -> Prompt:
        revealed = sample.target if self._config.reveal_target else None
        return reason_prompt(self._prompts[0], sample.query, sample.instruction, revealed=revealed)

    def reason(self, sample: Sample) -> TeacherRequest:
        prompt, images = self.reason_prompt(sample), self._images(sample, 0)
        return reason_request(f"{sample.query.qid}/reason", prompt, images, sample.family, self._config.teacher)

    def verify(self, sample: Sample, answer: str) -> TeacherRequest:
        if self._config.verify.form == "facets":
            prompt = verify_facet_prompt(
                self._prompts[1], sample.query, sample.instruction, sample.target, facet=ANSWER, statement=answer
            )
        else:
            prompt = verify_prompt(self._prompts[1], sample.query, sample.instruction, answer, sample.target)
        return judge_request(f"{sample.query.qid}/verify", prompt, self._images(sample, 1), VERIFY, self._verifier)

    @property
    def verifier(self) -> TeacherConfig:
        """The settings that verifications use."""
        return self._verifier

    def _images(self, sample: Sample, whose: int) -> dict[str, EncodedImage]:
        paths = image_paths(sample.query, sample.target)
        return {role: self._encoders[whose].encode(path) for role, path in paths.items()}

    def _usable_queries(self, family: Family, splits: tuple[Split, ...]) -> Iterator[tuple[Query, Candidate]]:
        """Usable queries of the family's last dataset-task that exists and is chosen."""
        chosen = self._config.input
        for task in reversed(DATASET_TASKS):
            if family_of(task.task_id) is not family or (chosen.datasets and task.dataset not in chosen.datasets):
                continue
            if chosen.tasks and task.task_id not in chosen.tasks:
                continue
            for split in splits:
                exists = False
                for query_and_target in self._of_task(task, split):
                    exists = True
                    yield query_and_target
                if exists:
                    return

    def _of_task(self, task: DatasetTask, split: Split) -> Iterator[tuple[Query, Candidate]]:
        path = self._layout.queries(split, task)
        if not path.is_file():
            return
        with CandidateLookup(self._layout, self._config.input.candidate_cache) as lookup:
            rows = (row for _, _, row in scan_rows(path, Query) if isinstance(row, Query))  # a build reports malformed ones
            of_task = (query for query in rows if query.dataset_task == task)
            for query in islice(of_task, _LOOKED_AT):
                (target,) = lookup.first_held(task, split, [query.pos_cand_list])
                if query.defects or target is None:
                    continue
                try:
                    for path_ in image_paths(query, target).values():
                        self._encoders[0].encode(path_)
                except ImageProblem:
                    continue
                yield query, target
