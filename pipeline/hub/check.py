"""Checks a dataset before it is pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml
from pydantic import ValidationError

from pipeline.dataset.built_dataset import BuiltDataset, Part
from pipeline.files.redaction import Places
from pipeline.files.secrets import holds_secret
from schemas.errors import CotError
from schemas.record import Record, Rejection

_SHOWN: Final = 20
_BATCH: Final = 2_000

_UNKNOWN_LICENCES: Final = frozenset({"", "unknown", "none", "todo", "tbd"})


class NotFitToPush(CotError):
    """A dataset that must not be pushed as it is."""


@dataclass(frozen=True, slots=True)
class Problem:
    """subject: the row's id or the file's name if the finding may be accepted, because it is a matter of judgement; else
    empty."""

    text: str
    subject: str = ""


def check(dataset: BuiltDataset, advance: Callable[[int], None] = lambda rows: None, *, allow: Sequence[str] = ()) -> list[str]:
    """Raises NotFitToPush with everything that is wrong. `advance` is called with the number of validated rows.

    allow: ids of rows (or names of files) whose suspected secrets or local paths somebody has reviewed. Returns those of them
    that had such a finding, in order; the card lists them.
    """
    problems: list[Problem] = []
    accepted: dict[str, None] = {}
    for problem in _problems(dataset, advance):
        if problem.subject and problem.subject in allow:
            accepted[problem.subject] = None
            continue
        problems.append(problem)
        if len(problems) == _SHOWN:
            break
    if problems:
        listed = "".join(f"\n  - {problem.text}" for problem in problems)
        listed += "\n  - … and perhaps more" if len(problems) == _SHOWN else ""
        raise NotFitToPush(f"{dataset.directory} is not fit to be pushed:{listed}", _remedy(problems))
    return list(accepted)


def _remedy(problems: Sequence[Problem]) -> str:
    parts = []
    if any(not problem.subject for problem in problems):
        parts.append("correct these files, or build again")
    if subjects := list(dict.fromkeys(problem.subject for problem in problems if problem.subject)):
        parts.append(
            f"look at these rows (`mbeir-cot show DIR ID`), and accept harmless ones with `--allow {subjects[0]}`"
            + (" (may be repeated; --allow-from FILE takes one id per line)" if len(subjects) > 1 else "")
        )
    return "; ".join([*parts, "nothing was sent"])


def _problems(dataset: BuiltDataset, advance: Callable[[int], None]) -> Iterator[Problem]:
    damaged = list(dataset.mismatches())
    yield from map(Problem, damaged)
    yield from map(Problem, _card(dataset))
    places = Places.of(dataset.settings(), here=True)
    for name in ("README.md", "manifest.json"):
        path = dataset.directory / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            yield from (Problem(f"{name}{leak}", name) for leak in _leaks(text, places))
    if not damaged:
        yield from _rows(dataset, places, advance)


def _card(dataset: BuiltDataset) -> Iterator[str]:
    path = dataset.directory / "README.md"
    if not path.is_file():
        yield "README.md is missing: a dataset without a card"
        return
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    try:
        header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        yield f"README.md: the YAML header cannot be read: {error}"
        return
    if not isinstance(header, dict):
        yield "README.md has no YAML header"
        return
    licence = str(header.get("license") or "")
    if licence.lower() in _UNKNOWN_LICENCES:
        yield "README.md names no licence (`license`): set output.license and build again"
    elif licence != dataset.manifest.license:
        yield f"README.md says license {licence}, the manifest {dataset.manifest.license}"
    if dataset.manifest.synthetic and "synthetic" not in (header.get("tags") or ()):
        yield "README.md lacks the tag `synthetic`, although the data is synthetic"
    named = {config.get("config_name") for config in header.get("configs") or () if isinstance(config, dict)}
    for part in set(dataset.parts()) & {"data", "rejected", "with_images"}:
        wanted = "default" if part == "data" else part
        if wanted not in named:
            yield f"README.md has no config {wanted} for {part}/"
    for shown in ("data", "rejected", "with_images"):
        if (shown if shown != "data" else "default") in named and shown not in dataset.parts():
            yield f"README.md has a config for {shown}/, which has no files"


_ROWS: Final[tuple[tuple[Part, type[Record | Rejection]], ...]] = (("data", Record), ("rejected", Rejection))


def _rows(dataset: BuiltDataset, places: Places, advance: Callable[[int], None]) -> Iterator[Problem]:
    seen: set[str] = set()
    for part, model in _ROWS:
        if part not in dataset.parts():
            continue
        table = dataset.table(part)
        for batch in table.to_batches(max_chunksize=_BATCH):
            for row in batch.to_pylist():
                where = f"{part}: {row.get('id')}"
                try:
                    model.model_validate(row)
                except ValidationError as error:
                    first = error.errors()[0]
                    yield Problem(f"{where}: {'.'.join(map(str, first['loc'])) or 'the row'}: {first['msg']}")
                if part == "data" and row["id"] in seen:
                    yield Problem(f"{where} occurs twice")
                seen.add(row["id"])
                image = row.get("query_image")
                if isinstance(image, str) and (image.startswith(("/", "\\")) or ".." in image.split("/") or ":" in image):
                    yield Problem(f"{where}: query_image {image!r} is no path below the M-BEIR root")
                yield from (Problem(f"{where}: {leak}", str(row.get("id"))) for leak in _row_leaks(row, places))
            advance(len(batch))


def _row_leaks(row: dict[str, Any], places: Places) -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, str):
            yield from (f"{name}{leak}" for leak in _leaks(value, places if name == "detail" else None))
        elif name == "provenance":
            for key, text in value.items():
                if isinstance(text, str):
                    yield from (f"provenance.{key}{leak}" for leak in _leaks(text, places))


def _leaks(text: str, places: Places | None) -> Iterator[str]:
    """Descriptions of a suspected secret (never shown) or local path."""
    if holds_secret(text):
        yield " holds what looks like a token or key"
    if places is not None and (place := places.find(text)):
        yield f" names a place of this machine: {place!r}"
