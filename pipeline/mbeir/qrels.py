"""Relevance judgements: ``qid 0 did relevance task_id``, five columns, as UniIR's retriever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.mbeir.jsonl import MAX_LISTED, LineProblem, MalformedInput, read_lines
from schemas.mbeir import Qrel, parse_id


class Relevant(NamedTuple):
    """The judgements of one query."""

    dids: tuple[str, ...]
    task_id: int


def read_qrels(path: Path) -> Iterator[Qrel]:
    """Every line in order. Raises MalformedInput with up to 20 wrong lines."""
    for _, qrel in read_numbered_qrels(path):
        yield qrel


def read_numbered_qrels(path: Path) -> Iterator[tuple[int, Qrel]]:
    """(line number, judgement)."""
    problems: list[LineProblem] = []
    for number, line in read_lines(path):
        parsed = _parse(path, number, line)
        if isinstance(parsed, LineProblem):
            problems.append(parsed)
            if len(problems) > MAX_LISTED:
                raise MalformedInput(problems[:MAX_LISTED], more=True)
        elif not problems:
            yield number, parsed
    if problems:
        raise MalformedInput(problems)


def load_relevant(path: Path) -> dict[str, Relevant]:
    """qid -> relevant dids, by UniIR's rules: relevance above 0, repeats kept, the task of the qid's first line."""
    relevant: dict[str, list[str]] = {}
    tasks: dict[str, int] = {}
    for qrel in read_qrels(path):
        if qrel.relevance > 0:
            relevant.setdefault(qrel.qid, []).append(qrel.did)
            tasks.setdefault(qrel.qid, qrel.task_id)
    return {qid: Relevant(tuple(dids), tasks[qid]) for qid, dids in relevant.items()}


def _parse(path: Path, number: int, line: bytes) -> Qrel | LineProblem:
    def problem(key: str, value: object, message: str) -> LineProblem:
        return LineProblem(str(path), number, key, repr(value) if key else "", message)

    cells = line.decode("utf-8", "backslashreplace").split()
    if len(cells) == 4:
        return problem("", "", "4 columns as in TREC's qrels; M-BEIR's have a fifth, the task id")
    if len(cells) != 5:
        return problem("", "", f"{len(cells)} columns instead of the 5 of `qid 0 did relevance task_id`")
    qid, _, did, relevance, task = cells
    for key, value in (("qid", qid), ("did", did)):
        try:
            parse_id(value)
        except ValueError as error:
            return problem(key, value, str(error))
    for key, value in (("relevance", relevance), ("task_id", task)):
        if not value.lstrip("-").isdecimal():
            return problem(key, value, "not a whole number")
    return Qrel(qid, did, int(relevance), int(task))
