"""What of the suite lies below a root: counts against the published ones, names that lead nowhere, missing images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from pipeline.mbeir.stores import plain_store
from schemas.errors import InputError
from trainer.zero_shot.suite_images import find
from trainer.zero_shot.tasks import Candidate, Counts, Dataset, Picture, Query, Task

_EXAMPLES: Final = 3


class TaskCheck(BaseModel):
    """One task. `problems` make the check fail; `notes` do not."""

    task: str
    column: str
    queries: int = 0
    candidates: int = 0
    images: int = 0
    """Different files that are asked for."""
    missing: int = 0
    """Of these, such as cannot be opened."""
    problems: list[str] = []
    notes: list[str] = []


class SuiteCheck(BaseModel):
    root: str
    tasks: list[TaskCheck]
    absent: dict[str, list[str]]
    """Data set -> annotation files that are not there."""

    @property
    def ok(self) -> bool:
        return bool(self.tasks) and not any(task.problems for task in self.tasks)


def check(datasets: Sequence[Dataset], root: Path, *, images: bool = True, image_roots: Sequence[Path] = ()) -> SuiteCheck:
    """Reads every task whose files are there. Raises InputError where the root is no directory."""
    if not root.is_dir():
        raise InputError(f"{root} is no directory", "name the directory with the folders of the data sets (docs/zero-shot.md)")
    store = plain_store(root, tuple(image_roots))
    absent = {}
    checked = []
    for dataset in datasets:
        found = dataset.found(root)
        if len(found) < len(dataset.files):
            absent[dataset.name] = [name for name in dataset.files if name not in found]
        checked += [
            _check_task(task, dataset.published.get(task.name), store if images else None) for task in dataset.open(root)
        ]
    return SuiteCheck(root=str(root), tasks=checked, absent=absent)


def _check_task(task: Task, published: Counts | None, store: ImageStore | None) -> TaskCheck:
    result = TaskCheck(task=task.name, column=task.column)
    try:
        result.queries = sum(1 for _ in task.queries())
        ids = Counter(candidate.id for candidate in task.candidates())
        result.candidates = ids.total()
        result.problems += _strange(task, ids)
        result.notes += _unanswerable(task)
        if repeated := ids.total() - len(ids):
            result.notes.append(f"{repeated:,} candidates are listed twice; each place counts")
        if store is not None:
            _look(result, store, _pictures(task))
    except InputError as error:
        result.problems.append(error.problem)
    else:
        result.notes += _differing(result, published)
        if not result.queries or not result.candidates:
            result.problems.append("it is empty")
    return result


def _pictures(task: Task) -> Iterator[Picture]:
    shown: Iterable[Query | Candidate]
    for shown in (task.queries(), task.candidates()):
        for one in shown:
            yield from one.pictures


def _strange(task: Task, ids: Counter[str]) -> Iterator[str]:
    """Queries that name a candidate which there is not, ask nothing, or have the id of another."""
    lost, empty, names = [], [], Counter[str]()
    for query in task.queries():
        names[query.id] += 1
        if not query.parts:
            empty.append(query.id)
        if (task.labelled and not query.positives) or any(
            name not in ids for name in (*query.positives, *query.gallery, *query.excluded)
        ):
            lost.append(query.id)
    for what, which in (
        ("name candidates that are not listed", lost),
        ("are empty", empty),
        ("have an id that another has", [name for name, number in names.items() if number > 1]),
    ):
        if which:
            yield f"{len(which):,} queries {what}: {', '.join(which[:_EXAMPLES])}{' …' if len(which) > _EXAMPLES else ''}"


def _unanswerable(task: Task) -> Iterator[str]:
    """Stories whose last image is one of the first, which are passed over: misses, here as in the reference."""
    number = sum(1 for query in task.queries() if query.positives and set(query.positives) <= set(query.excluded))
    if number:
        yield f"{number:,} queries cannot be answered: what is right is passed over in them"


def _differing(result: TaskCheck, published: Counts | None) -> Iterator[str]:
    if published is None:
        return
    for what, here, there in (
        ("queries", result.queries, published.queries),
        ("candidates", result.candidates, published.candidates),
    ):
        if there is not None and here != there:
            yield f"{here:,} {what} here, {there:,} as published: its scores are not comparable"


def _look(result: TaskCheck, store: ImageStore, pictures: Iterable[Picture]) -> None:
    """Whether each file is there; nothing is decoded."""
    seen: set[str] = set()
    reasons: dict[str, list[str]] = {}
    for picture in pictures:
        if picture.path in seen:
            continue
        seen.add(picture.path)
        try:
            find(store, picture)
        except ImageProblem as problem:
            reasons.setdefault(problem.reason, []).append(problem.path)
    result.images, result.missing = len(seen), sum(map(len, reasons.values()))
    for reason, paths in reasons.items():
        shown = ", ".join(paths[:_EXAMPLES])
        result.problems.append(
            f"{len(paths):,} of {len(seen):,} images: {reason}: {shown}{' …' if len(paths) > _EXAMPLES else ''}"
        )
