"""What must hold of a dataset before others may see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml
from pydantic import ValidationError

from pipeline.finished import FinishedDataset
from schemas.errors import CotError
from schemas.record import Record, Rejection

_SHOWN: Final = 20
_BATCH: Final = 2_000

_SECRETS: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bBearer [A-Za-z0-9._-]{20,}"
)
_MACHINE: Final = re.compile(
    r"(?<![\w.:/-])(?:/(?:home|root|Users|tmp|work|mnt|data|scratch|var|srv|opt|gpfs|lustre|nfs)/[\w.-]+)"
    r"|file://|\b[A-Za-z]:\\\\?[\w.-]"
)
_UNKNOWN_LICENCES: Final = frozenset({"", "unknown", "none", "todo", "tbd"})


class NotPublishable(CotError):
    """A dataset that must not be pushed as it is."""


def check(dataset: FinishedDataset, advance: Callable[[int], None] = lambda rows: None) -> None:
    """Raises NotPublishable with everything that is wrong. `advance` is told of rows as they are validated."""
    found: list[str] = []
    for problem in _problems(dataset, advance):
        found.append(problem)
        if len(found) == _SHOWN:
            found.append("… and perhaps more")
            break
    if found:
        listed = "".join(f"\n  - {problem}" for problem in found)
        raise NotPublishable(
            f"{dataset.directory} is not fit to be published:{listed}",
            "mend these (or build again), then push; nothing was sent",
        )


def _problems(dataset: FinishedDataset, advance: Callable[[int], None]) -> Iterator[str]:
    damaged = list(dataset.mismatches())
    yield from damaged
    yield from _card(dataset)
    for name in ("README.md", "manifest.json"):
        path = dataset.directory / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            yield from _leaks(text, name, paths=True)
    if not damaged:
        yield from _rows(dataset, advance)


def _card(dataset: FinishedDataset) -> Iterator[str]:
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
        yield "README.md lacks the tag `synthetic`, and the data is"
    named = {config.get("config_name") for config in header.get("configs") or () if isinstance(config, dict)}
    for part in set(dataset.parts()) & {"data", "rejected", "with_images"}:
        wanted = "default" if part == "data" else part
        if wanted not in named:
            yield f"README.md has no config {wanted} for {part}/"
    for shown in ("data", "rejected", "with_images"):
        if (shown if shown != "data" else "default") in named and shown not in dataset.parts():
            yield f"README.md has a config for {shown}/, of which there are no files"


def _rows(dataset: FinishedDataset, advance: Callable[[int], None]) -> Iterator[str]:
    seen: set[str] = set()
    for part, model in (("data", Record), ("rejected", Rejection)):
        if part not in dataset.parts():
            continue
        table = dataset.table(part)  # type: ignore[arg-type]
        for batch in table.to_batches(max_chunksize=_BATCH):
            for row in batch.to_pylist():
                where = f"{part}: {row.get('id')}"
                try:
                    model.model_validate(row)
                except ValidationError as error:
                    first = error.errors()[0]
                    yield f"{where}: {'.'.join(map(str, first['loc'])) or 'the row'}: {first['msg']}"
                if part == "data" and row["id"] in seen:
                    yield f"{where} stands twice"
                seen.add(row["id"])
                yield from _row_leaks(row, where)
            advance(len(batch))


def _row_leaks(row: dict[str, Any], where: str) -> Iterator[str]:
    image = row.get("query_image")
    if isinstance(image, str) and (image.startswith(("/", "\\")) or ".." in image.split("/") or ":" in image):
        yield f"{where}: query_image {image!r} is no path below the M-BEIR root"
    for name, value in row.items():
        if isinstance(value, str):
            yield from _leaks(value, f"{where}: {name}", paths=name == "detail")
        elif name == "provenance":
            for key, text in value.items():
                if isinstance(text, str):
                    yield from _leaks(text, f"{where}: provenance.{key}", paths=True)


def _leaks(text: str, where: str, *, paths: bool) -> Iterator[str]:
    """What looks like a secret (never shown), or a path of this machine."""
    if _SECRETS.search(text):
        yield f"{where} holds what looks like a token or key"
    if paths and (found := _MACHINE.search(text)):
        yield f"{where} names a place of this machine: {text[max(0, found.start() - 10) : found.end() + 30]!r}"
