"""The untrained base with prompts that suit it: it answers each query in its own words, then embeds.

A prompt set's sub-directory ``base`` has these prompts: `student_query` asks for an answer, `base_written` makes of the answer
what the embedding follows, `student_candidate` asks for the embedding of a candidate. The row `base` has the student's prompts
instead, which only a trained embedder knows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from prompts import PromptSet
from schemas.training import TrainConfig
from trainer.embedding.queries import QueryCosts
from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.results import Result

NAME: Final = "base, answers first"
SUFFIX: Final = "base-answers"


def base_settings(config: TrainConfig) -> TrainConfig:
    """A config's settings with the base's own prompts. Raises ConfigError where its prompt set has none."""
    name = f"{config.data.prompts}/base"
    PromptSet.load(name)
    return config.model_copy(update={"data": config.data.model_copy(update={"prompts": name})})


def answer_first(evaluation: Evaluation) -> Result:
    """The row of the table. `evaluation`: of the base, with `base_settings`."""
    evaluation.embed_pools(SUFFIX)
    prompts = PromptSet.load(evaluation.config.data.prompts)
    answered = evaluation.embed_queries("base, answers", "always-reason")
    written = {
        evaluation.record_id(task, query): _text(prompts, embedding.trace)
        for task, (embeddings, _) in answered.items()
        for query, embedding in zip(evaluation.files[task].queries, embeddings, strict=True)
    }
    result, _ = evaluation.run(NAME, SUFFIX, "given", written=written)
    costs = {task.name: of_answers for task, (_, of_answers) in answered.items()}
    return Result(NAME, [replace(task, costs=_both(costs[task.task], task.costs)) for task in result.tasks])


def _text(prompts: PromptSet, answer: str) -> str:
    return "".join(part for part in prompts.render("base_written", answer=answer.strip()) if isinstance(part, str))


def _both(answering: QueryCosts, embedding: QueryCosts) -> QueryCosts:
    """The costs of the answers, with the time of the embedding added."""
    return answering._replace(seconds=answering.seconds + embedding.seconds)
