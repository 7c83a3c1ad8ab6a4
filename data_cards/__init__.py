"""Cards: what a dataset says of itself on the Hub. Every number in them comes from the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.manifest import Manifest

_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render_pocket_model_card(role: str, log: Path, stem_log: Path, figures: dict[str, dict[str, Any]], lessons: int) -> str:
    """The card of a pocket checkpoint from its training logs and its measured figures (`pocket.measure`)."""
    heads = [line for line in map(json.loads, log.read_text().splitlines()) if "recipe" in line]
    stem = json.loads(stem_log.read_text().splitlines()[0])
    return (
        _environment()
        .get_template("pocket_model.md.jinja")
        .render(
            role=role,
            parameters=heads[0]["parameters"],
            recipes=[head["recipe"] for head in heads],
            stem=stem["recipe"],
            figures=figures,
            lessons=lessons,
        )
    )


def render_dataset_card(manifest: Manifest) -> str:
    """README.md with the Hub's YAML header."""
    configs = sorted({file.path.split("/")[0] for file in manifest.files})
    return (
        _environment()
        .get_template("dataset.md.jinja")
        .render(
            m=manifest,
            size=next((name for most, name in _SIZES if manifest.records < most), "n>10M"),
            folders=configs,
            reasons=_by_reason(manifest),
        )
    )


def _by_reason(manifest: Manifest) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for task in manifest.tasks:
        for reason, count in task.rejected.items():
            found[reason] = found.get(reason, 0) + count
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))
