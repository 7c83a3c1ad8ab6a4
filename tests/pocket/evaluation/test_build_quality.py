from __future__ import annotations

import pytest

from pocket.evaluation.build_quality import is_right
from pocket.world.ground_truth import QueryTruth
from pocket.world.reasoning_kinds import ReasoningKind


def truth(task: str, answer: str, target: str = "") -> QueryTruth:
    return QueryTruth(
        split="train", qid="8:1", dataset_task=task, why=ReasoningKind.NONE, target=target or answer, answer=answer
    )


@pytest.mark.parametrize(
    ("given", "answer", "right"),
    [
        (truth("cirr_task7", "large red circle top, day"), "large red circle top, day", True),
        (
            truth("cirr_task7", "large red circle top, day"),
            "large red circle, day",
            False,
        ),  # the whole picture must be described
        (truth("cirr_task7", "large red circle top, day"), "large red circle top, day, small blue star left", False),
        (truth("mscoco_task0", "large red circle top, small red circle left, day"), "red circle, small red circle", True),
        (truth("mscoco_task0", "large red circle top, day"), "red circle, red circle", False),  # there is only one
        (truth("mscoco_task0", "large red circle top, day"), "blue circle", False),
        (truth("mscoco_task0", "large red circle top, large blue star left"), "red circle, star left of circle", True),
        (truth("edis_task2", "storm, Corwick: large red circle top, day"), "storm in Corwick: red circle", True),
        (truth("edis_task2", "storm, Corwick: large red circle top, day"), "storm in Pelden: red circle", False),
        (truth("infoseek_task6", "Lind", "Corwick, town"), "Corwick: Lind", True),
        (truth("infoseek_task6", "Lind", "Corwick, town"), "Corwick: Linden", False),
        (truth("oven_task6", "pelora", "pelora, summary"), "pelora, fruit", True),
        (truth("oven_task6", "pelora", "pelora, summary"), None, False),
    ],
)
def test_an_answer_is_right_if_the_target_supports_it(given: QueryTruth, answer: str | None, right: bool) -> None:
    assert is_right(answer, given) is right
