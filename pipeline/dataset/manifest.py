"""The manifest and the data card of a dataset that was just assembled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from data_cards import render_dataset_card
from pipeline.dataset.assemble import Assembled
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.dataset.card import examples, spreads
from pipeline.dataset.chosen_queries import Chosen
from pipeline.dataset.staging import Staging
from pipeline.files.durable import replace_text, sha256_file
from pipeline.ledger.request_key import Identity
from pipeline.traces.families import FAMILIES
from pipeline.traces.prompting import FACET_TEMPLATE
from pipeline.traces.token_counts import tokenizer_digest
from prompts import PromptSet
from schemas import __version__
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.labels import Agreement
from schemas.manifest import InputDigest, Manifest, Model, TaskCounts
from schemas.os_errors import explained
from schemas.teacher_config import TeacherConfig

_PLACES: Final = {"mbeir", "out", "workers", "ledger", "early_stop", "publish", "lock"}
"""Settings that do not change the content: places, and how the work is done."""

_TEACHER_PLACES: Final = {"hosting", "server", "endpoints", "reuse", "images", "transport"}


def content_settings(config: BuildConfig) -> dict[str, Any]:
    """The settings that determine the dataset's content, without paths and addresses."""
    settings = config.model_dump(mode="json", exclude=_PLACES)
    settings["input"].pop("candidate_cache")
    settings["input"].pop("image_roots")
    settings["screen"].pop("tokenizer")
    if config.route.utility is not None:
        settings["route"]["utility"] = _digest(config.route.utility)
    for name, teacher in (("teacher", config.teacher), ("verifier", config.verifier)):
        if teacher is not None:
            identity = Identity(teacher)
            asked = teacher.model_dump(mode="json", exclude=_TEACHER_PLACES)
            asked["prompts"] = Path(teacher.prompts).name
            settings[name] = {"model": identity.name, "revision": identity.revision, **asked}
    return settings


def config_sha256(config: BuildConfig) -> str:
    """A digest of these settings, the models (with pixel budgets), the prompts, the tokenizer and the code's version."""
    who = [Identity(teacher).prefix.decode() for teacher in (config.teacher, config.verifier) if teacher is not None]
    state = [content_settings(config), who, prompt_digests(config), tokenizer_digest(config), __version__]
    return hashlib.sha256(orjson.dumps(state, option=orjson.OPT_SORT_KEYS)).hexdigest()


def prompt_digests(config: BuildConfig) -> dict[str, str]:
    def of(teacher: TeacherConfig, names: list[str]) -> dict[str, str]:
        prompts = PromptSet.load(teacher.prompts)
        return {name: prompts.sha256(name) for name in names}

    verify = [FACET_TEMPLATE] if config.verify.form == "facets" else ["verify_image", "verify_text"]
    return of(config.teacher, ["assess", *(f"reason_{family}" for family in FAMILIES)]) | of(
        config.verifier or config.teacher, verify
    )


def make_manifest(
    config: BuildConfig,
    chosen: Chosen,
    assembled: Assembled,
    *,
    inputs: list[InputDigest],
    pools: list[InputDigest],
    staging: Staging,
    dataset: Path,
) -> Manifest:
    """Describes the files in `dataset`, and adds the card's pictures to them."""
    teacher = Identity(config.teacher)
    verifier = Identity(config.verifier or config.teacher) if config.verify.enabled else None
    tokens = staging.tokens.values()
    shown, pictures = examples(config, dataset, assembled.files)
    return Manifest(
        name=config.output.name,
        synthetic=config.output.synthetic,
        license=config.output.license,
        pipeline_version=__version__,
        teacher=Model(name=teacher.name, revision=teacher.revision),
        verifier=Model(name=verifier.name, revision=verifier.revision) if verifier is not None else None,
        prompts=prompt_digests(config),
        config=content_settings(config),
        config_sha256=config_sha256(config),
        inputs=tuple(inputs),
        pools=tuple(pools),
        split=chosen.work.split,
        queries=len(chosen.work),
        records=assembled.records,
        rejections=assembled.rejections,
        malformed_lines=chosen.work.malformed,
        owed=sum(staging.owed.values()),
        tasks=_with_left(assembled.tasks, chosen),
        left=sum(chosen.left.values()),
        short=chosen.short,
        prompt_tokens=sum(counts["prompt_tokens"] for counts in tokens),
        completion_tokens=sum(counts["completion_tokens"] for counts in tokens),
        spreads=spreads(dataset, assembled.files),
        examples=tuple(shown),
        files=(*assembled.files, *pictures),
    )


def add_agreement(dataset: BuiltDataset, found: Sequence[Agreement]) -> None:
    """Puts people's agreement into the manifest and the card of a finished dataset."""
    manifest = dataset.manifest.model_copy(update={"agreement": tuple(found)})
    replace_text(dataset.directory / "README.md", render_dataset_card(manifest, dataset.directory))
    replace_text(dataset.directory / "manifest.json", manifest.model_dump_json(indent=1) + "\n")


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        cause, remedy = explained(error, "write it with `mbeir-cot utility RUN DATASET`")
        raise InputError(f"route.utility: {path} cannot be read: {cause}", remedy) from error


def _with_left(tasks: Sequence[TaskCounts], chosen: Chosen) -> tuple[TaskCounts, ...]:
    return tuple(task.model_copy(update={"left": chosen.left.get((task.dataset, task.task_id), 0)}) for task in tasks)


def write_card(manifest: Manifest, directory: Path) -> None:
    (directory / "README.md").write_text(render_dataset_card(manifest, directory), encoding="utf-8")
