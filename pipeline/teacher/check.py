"""One worked example per task family, asked of the teacher for real: what `mbeir-cot teacher check` prints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from pipeline.families import FAMILIES, Family, family_of
from pipeline.judge import ASSESS, VERIFY
from pipeline.mbeir.instructions import FixedChoice, InstructionTable
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from pipeline.mbeir.stores import build_store
from pipeline.question import assess_prompt, image_paths, reason_prompt, verify_prompt
from pipeline.teacher.ask import Judged, Reasoned, judge, judge_request, reason, reason_request
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.images import EncodedImage, ImageEncoder, ImageMode
from prompts import Prompt, PromptSet
from schemas.config import BuildConfig
from schemas.mbeir import DATASET_TASKS, Candidate, Query
from schemas.trace import Trace


@dataclass(frozen=True, slots=True)
class Example:
    """A query of one family and all that the teacher said of it."""

    family: Family
    query: Query
    target: Candidate
    reason_prompt: Prompt
    assessed: Judged
    reasoned: Reasoned
    verified: Judged | None


async def examples(config: BuildConfig, client: TeacherClient, *, skip: int = 0) -> AsyncIterator[Example]:
    """An example of each family that the directory has, from its validation or test queries (`skip` passes over some)."""
    layout, teacher = Layout.open(config.mbeir), config.teacher
    prompts, table = PromptSet.load(teacher.prompts), InstructionTable.load(layout.instructions)
    encoder = ImageEncoder(build_store(config), ImageMode(teacher.images), max_pixels=teacher.max_pixels)
    for family in FAMILIES.values():
        found = _pick(layout, family, skip)
        if found is None:
            continue
        query, target = found
        task = query.dataset_task
        instruction = table.choose(
            query.dataset_id, task.query_modality, task.cand_modality, FixedChoice(), split="val", qid=query.qid
        )
        images: dict[str, EncodedImage] = {role: encoder.encode(path) for role, path in image_paths(query, target).items()}
        prompt = reason_prompt(prompts, query, instruction)
        assess = judge_request(f"{query.qid}/assess", assess_prompt(prompts, query, instruction), images, ASSESS, teacher)
        assessed = await judge(client, assess, ASSESS, teacher)
        reasoned = await reason(client, reason_request(f"{query.qid}/reason", prompt, images, family, teacher), family)
        verified = None
        if isinstance(reasoned.trace, Trace):
            asked = verify_prompt(prompts, query, instruction, reasoned.trace.answer, target)
            request = judge_request(f"{query.qid}/verify", asked, images, VERIFY, teacher)
            verified = await judge(client, request, VERIFY, teacher)
        yield Example(family, query, target, prompt, assessed, reasoned, verified)


def _pick(layout: Layout, family: Family, skip: int) -> tuple[Query, Candidate] | None:
    """The query number `skip` of the family's last dataset-task that is there, with its first positive."""
    for task in reversed(DATASET_TASKS):
        if family_of(task.task_id) is not family:
            continue
        for split in ("val", "test"):
            path, pool_path = layout.queries(split, task), layout.local_pool(task, split)
            if path.is_file() and pool_path is not None and pool_path.is_file():
                for number, (_, query) in enumerate(read_queries(path)):
                    if number == skip:
                        with CandidatePool.open(pool_path) as pool:
                            return query, pool.fetch([query.pos_cand_list[0]])[0]
    return None
