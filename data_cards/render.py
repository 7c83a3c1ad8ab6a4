"""Renders the cards (README.md) of datasets and models. Every number of a dataset's card comes from its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import yaml
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.manifest import Manifest
from schemas.training import TrainConfig

_CONFIGS: Final = {"data": "default", "rejected": "rejected", "with_images": "with_images"}
"""Folder -> config."""

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
    """Renders the card of a pocket checkpoint from its training logs and measured figures (`pocket.evaluation.skills`)."""
    heads: list[dict[str, Any]] = []
    steps: list[int] = []  # of each part: the last that was logged, because a course may end by time
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if "recipe" in line:
            heads.append(line)
            steps.append(0)
        else:
            steps[-1] = line.get("step", steps[-1])
    stem = json.loads(stem_log.read_text(encoding="utf-8").splitlines()[0])
    return (
        _environment()
        .get_template("pocket_model.md.jinja")
        .render(
            role=role,
            parameters=heads[-1]["parameters"],
            courses=[f"{count:,} of {head['recipe']['batch']}" for head, count in zip(heads, steps, strict=True)],
            notes=[f"{count:,} steps: {head['note']}" for head, count in zip(heads, steps, strict=True) if "note" in head],
            stem=stem["recipe"],
            figures=figures,
            lessons=lessons,
        )
    )


def render_dataset_card(manifest: Manifest, directory: Path, repo: str | None = None) -> str:
    """Renders README.md for a dataset's directory, with the Hub's YAML header.

    repo: the name that the card's snippets load; the directory's own path never appears.
    """
    folders = [folder for folder in _CONFIGS if any(file.path.startswith(f"{folder}/") for file in manifest.files)]
    header = yaml.safe_dump(_header(manifest, directory, folders), sort_keys=False, allow_unicode=True)
    return (
        _environment()
        .get_template("dataset.md.jinja")
        .render(
            m=manifest,
            header=header,
            folders=folders,
            repo=repo or "PATH_OR_REPO",
            reasons=_by_reason(manifest),
            examples=_examples(manifest, directory),
        )
    )


def render_trace_model_card(
    config: TrainConfig,
    variant: str,
    identity: Any,
    results: list[dict[str, Any]],
    *,
    repo: str,
    synthetic: bool,
    prompts: str = "",
) -> str:
    """Renders README.md for a trained embedder.

    results: the results that `mbeir-cot eval` wrote; empty if it has not run.
    prompts: for merged weights, the student's prompts as Python source (`trainer.release.sentence_transformers`).
    """
    base = Path(config.model.base).name if Path(config.model.base).exists() else config.model.base
    return (
        _environment()
        .get_template("trace_model.md.jinja")
        .render(
            config=config,
            variant=variant,
            identity=identity,
            results=results,
            tasks=[task["task"] for task in results[0]["tasks"]] if results else [],
            repo=repo,
            place=repo,
            base=base,
            synthetic=synthetic,
            prompts=prompts,
        )
    )


def _header(manifest: Manifest, directory: Path, folders: list[str]) -> dict[str, Any]:
    card = {
        "pretty_name": manifest.name + (" (SYNTHETIC)" if manifest.synthetic else ""),
        "license": manifest.license,
        "language": ["en"],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated" if manifest.synthetic else "found"],
        "multilinguality": ["monolingual"],
        "source_datasets": ["original"] if manifest.synthetic else ["extended|TIGER-Lab/M-BEIR"],
        "size_categories": [next((name for most, name in _SIZES if manifest.records < most), "n>10M")],
        "task_categories": ["visual-document-retrieval", "image-to-text", "text-retrieval"],
        "tags": [
            *(["synthetic"] if manifest.synthetic else []),
            "multimodal-retrieval",
            "universal-multimodal-retrieval",
            "chain-of-thought",
            "reasoning",
            "m-beir",
            "trace",
        ],
        "configs": [
            {
                "config_name": _CONFIGS[folder],
                **({"default": True} if folder == "data" else {}),
                "data_files": [{"split": manifest.split, "path": f"{folder}/*.parquet"}],
            }
            for folder in folders
        ],
    }
    return card | {"dataset_info": [_info(manifest, directory, folder) for folder in folders]}


def _info(manifest: Manifest, directory: Path, folder: str) -> dict[str, Any]:
    """Features and sizes of one config in the Hub's format."""
    from datasets import Features  # noqa: PLC0415 (it imports pandas and much else)

    files = [file for file in manifest.files if file.path.startswith(f"{folder}/")]
    footers = [pq.read_metadata(directory / file.path) for file in files]
    size = sum(footer.row_group(i).total_byte_size for footer in footers for i in range(footer.num_row_groups))
    features = Features.from_arrow_schema(footers[0].schema.to_arrow_schema())
    split = {"name": manifest.split, "num_bytes": size, "num_examples": sum(file.rows for file in files)}
    return {
        "config_name": _CONFIGS[folder],
        "features": features._to_yaml_list(),  # as push_to_hub does
        "splits": [split],
        "download_size": sum(file.bytes for file in files),
        "dataset_size": size,
    }


def _examples(manifest: Manifest, directory: Path) -> list[dict[str, Any]]:
    """Returns the card's examples with their rows."""
    wanted = {example.id: example for example in manifest.examples}
    if not wanted:
        return []
    paths = [str(directory / file.path) for file in manifest.files if file.path.startswith("data/")]
    table = pads.dataset(paths, format="parquet").to_table(filter=pc.field("id").isin(list(wanted)))
    rows = {row["id"]: row for row in table.to_pylist()}
    return [{"shown": example, "row": rows[example.id]} for example in manifest.examples if example.id in rows]


def _by_reason(manifest: Manifest) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for task in manifest.tasks:
        for reason, count in task.rejected.items():
            found[reason] = found.get(reason, 0) + count
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))
