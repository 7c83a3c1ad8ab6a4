"""M-BEIR's instructions, and UniIR's exact wording of query and candidate texts.

Source: ``query_instructions.tsv`` of M-BEIR and UniIR's ``data/mbeir_dataset.py`` (loader, `format_string`, assembly). UniIR
draws an instruction at random inside data-loader workers, so its choice depends on their number; here it depends only on the
query.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from pipeline.mbeir.jsonl import LineProblem, MalformedInput, line_problems
from schemas.errors import InputError
from schemas.mbeir import DATASET_NAMES, Instruction, Modality, Query
from schemas.os_errors import explained, refused_by_system

_HEADER: Final = ("query_modality", "cand_modality", "dataset_name", "dataset_id")
_Key = tuple[int, Modality, Modality]


def format_string(text: str | None) -> str:
    """UniIR's clean-up: no carriage returns, trimmed, outer quotes off, first letter upper case, closed by punctuation.

    Quotes are removed after trimming and the result is not trimmed again: ``'" hi "'`` gives ``' hi .'``.
    """
    text = (text or "").replace("\r", "").strip().strip('"')
    if text:
        text = text[0].upper() + text[1:]
        if text[-1] not in ".?!":
            text += "."
    return text


def query_text(prompt: str, query_txt: str | None) -> str:
    """A query's text with its instruction, as an embedder reads it."""
    return format_string(f"{prompt} {query_txt or ''}")


def candidate_text(txt: str | None) -> str:
    """A candidate's text as an embedder reads it, without an instruction."""
    return format_string(txt)


@dataclass(frozen=True, slots=True)
class FixedChoice:
    """Always the instruction at `index` (0 is what Pyserini reports)."""

    index: int = 0

    def pick(self, count: int, *, split: str, qid: str) -> int:
        return self.index % count


@dataclass(frozen=True, slots=True)
class SeededChoice:
    """An instruction drawn by (seed, split, qid): qids repeat across splits."""

    seed: int = 0

    def pick(self, count: int, *, split: str, qid: str) -> int:
        digest = hashlib.sha256(f"{self.seed}\0{split}\0{qid}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % count


Choice = FixedChoice | SeededChoice


class InstructionTable:
    """M-BEIR's instructions by (dataset id, query modality, candidate modality)."""

    def __init__(self, path: Path, rows: dict[_Key, Instruction]) -> None:
        self.path = path
        self._rows = rows

    @classmethod
    def load(cls, path: Path) -> InstructionTable:
        """Raises InputError if the file is missing, MalformedInput if lines are wrong."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            refused = refused_by_system(error)
            raise InputError(
                f"cannot read the instructions {path}: {explained(error).cause}",
                refused.remedy
                if refused
                else "it is a small file of M-BEIR: `mbeir-cot mbeir fetch DIR --no-images` downloads it",
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start})", "download it again") from error
        rows: dict[_Key, Instruction] = {}
        problems: list[LineProblem] = []
        for number, line in enumerate(lines, 1):
            cells = [cell.strip() for cell in line.strip().split("\t")]
            if number == 1:
                if tuple(cells[:4]) != _HEADER:
                    problems.append(
                        LineProblem(str(path), 1, "", "", f"the header must begin with {' '.join(_HEADER)} (tab-separated)")
                    )
            elif line.strip():
                try:
                    row = _instruction(cells)
                except ValidationError as error:
                    problems += line_problems(path, number, error)
                    continue
                key = (row.dataset_id, row.query_modality, row.cand_modality)
                if key in rows:
                    problems.append(LineProblem(str(path), number, "", "", f"a second row for {_named(key)}"))
                rows[key] = row
        if not lines:
            problems.append(LineProblem(str(path), 1, "", "", "the file is empty"))
        if problems:
            raise MalformedInput(problems)
        return cls(path, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def prompts(self, dataset_id: int, query: Modality, candidate: Modality) -> tuple[str, ...]:
        """The instructions (four in M-BEIR) for one kind of retrieval."""
        key = (dataset_id, query, candidate)
        try:
            return self._rows[key].prompts
        except KeyError:
            raise InputError(
                f"{self.path} has no instruction for {_named(key)}", "add a row for it, or leave these queries out"
            ) from None

    def choose(self, dataset_id: int, query: Modality, candidate: Modality, choice: Choice, *, split: str, qid: str) -> str:
        """One instruction; `choice` picks it by split and qid."""
        prompts = self.prompts(dataset_id, query, candidate)
        return prompts[choice.pick(len(prompts), split=split, qid=qid)]

    def for_query(self, query: Query, choice: Choice, *, split: str) -> str:
        """The instruction of one query."""
        task = query.dataset_task
        return self.choose(query.dataset_id, task.query_modality, task.cand_modality, choice, split=split, qid=query.qid)


def _instruction(cells: list[str]) -> Instruction:
    padded = [*cells, *[""] * (4 - len(cells))]
    return Instruction.model_validate(
        {
            "query_modality": padded[0],
            "cand_modality": padded[1],
            "dataset_name": padded[2],
            "dataset_id": padded[3],
            "prompts": [cell for cell in cells[4:] if cell],
        }
    )


def _named(key: _Key) -> str:
    return f"dataset {key[0]} ({DATASET_NAMES[key[0]]}), {key[1]} → {key[2]}"
