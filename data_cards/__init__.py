"""Cards: what a dataset says of itself on the Hub. Every number in them comes from the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Final

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


def render_dataset_card(manifest: Manifest) -> str:
    """README.md with the Hub's YAML header."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    configs = sorted({file.path.split("/")[0] for file in manifest.files})
    return environment.get_template("dataset.md.jinja").render(
        m=manifest,
        size=next((name for most, name in _SIZES if manifest.records < most), "n>10M"),
        folders=configs,
        reasons=_by_reason(manifest),
    )


def _by_reason(manifest: Manifest) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for task in manifest.tasks:
        for reason, count in task.rejected.items():
            found[reason] = found.get(reason, 0) + count
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))
