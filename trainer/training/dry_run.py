"""`mbeir-cot train CONFIG --dry-run`: what a training would be, without loading weights or taking a step."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.errors import InputError
from schemas.training import TrainConfig, Variant
from trainer.data.batches import CPU_CHUNK, BatchSource
from trainer.data.dataset import Candidates, Records
from trainer.model.embedder import Embedder
from trainer.training.cost import (
    MEASURED_ON,
    MEASURED_SHARE,
    PEAK,
    PUBLISHED_PATCHES,
    PUBLISHED_ROWS,
    PUBLISHED_TOKENS,
    train_memory,
    useful_flop,
)
from trainer.training.train import learnt_traces

SAMPLE = 64
"""Queries whose rows are counted."""


class Run(BaseModel):
    """One variant. Tokens and patches: of a query, what it learns, a positive and hard negatives."""

    model_config = ConfigDict(frozen=True)

    variant: Variant
    queries: int
    steps: int
    tokens: float
    patches: float
    step_tokens: float
    step_s: float
    hours: float
    counted: Literal["data", "published"]
    """Of the data that the config names; or of M-BEIR-CoT as published, where there is none."""


class Plan(BaseModel):
    """Memory in bytes on a device, None where `batch.micro_batch_size: auto` is tried on the GPU. Rates are of all devices."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    trained: int
    devices: int
    step_rows: int
    chunk: int | Literal["auto"]
    memory: float
    mfu: float
    peak: float
    source: str
    runs: tuple[Run, ...]
    missing: str | None
    """Why nothing was counted."""

    @property
    def hours(self) -> float:
        return sum(run.hours for run in self.runs)


def plan(config: TrainConfig, devices: int, *, mfu: float | None = None, peak: float = PEAK) -> Plan:
    """`peak`: FLOP/s of a device; `mfu`: the share of it that is useful work [default: what was measured of the 7B's shape]."""
    embedder = Embedder.create(config.model, config.data.prompts, weights=False)
    checkpointing = config.model.gradient_checkpointing
    share = mfu if mfu is not None else MEASURED_SHARE[checkpointing]
    how = "given" if mfu is not None else f"measured on one {MEASURED_ON} with the 7B's shape, {_with(checkpointing)}"
    named = list(embedder.model.named_parameters())
    language = sum(p.numel() for name, p in named if "language_model" in name and "embed_tokens" not in name)
    vision = sum(p.numel() for name, p in named if ".visual." in name)
    rows = config.batch.global_batch_size * (2 + config.data.hard_negatives)
    runs, missing = [], None
    for variant in config.variants:
        try:
            queries, per_epoch, tokens, patches = _counted(config, variant, embedder, devices)
            counted: Literal["data", "published"] = "data"
        except InputError as error:
            missing = str(error).splitlines()[0]
            queries, counted = PUBLISHED_ROWS, "published"
            per_epoch, tokens, patches = queries // config.batch.global_batch_size, PUBLISHED_TOKENS[variant], PUBLISHED_PATCHES
        steps = config.optimiser.max_steps or max(1, math.ceil(config.optimiser.epochs * per_epoch))
        work = useful_flop(
            language, vision, tokens=config.batch.global_batch_size * tokens, patches=config.batch.global_batch_size * patches
        )
        step_s = work / (devices * peak * share)
        runs.append(
            Run(
                variant=variant,
                queries=queries,
                steps=steps,
                tokens=tokens,
                patches=patches,
                step_tokens=config.batch.global_batch_size * tokens,
                step_s=step_s,
                hours=steps * step_s / 3600,
                counted=counted,
            )
        )
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    chunk = config.batch.micro_batch_size
    text: Any = embedder.model.config.text_config
    row_tokens = max(run.tokens for run in runs) / (2 + config.data.hard_negatives)
    return Plan(
        parameters=sum(p.numel() for p in embedder.parameters()),
        trained=trained,
        devices=devices,
        step_rows=rows,
        chunk=chunk,
        memory=train_memory(
            sum(p.numel() * p.element_size() for p in embedder.parameters() if not p.requires_grad),
            trained,
            tokens=row_tokens * (CPU_CHUNK if chunk == "auto" else chunk),
            checkpointing=checkpointing,
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            words=text.vocab_size,
        ),
        mfu=share,
        peak=peak,
        source=how,
        runs=tuple(runs),
        missing=missing,
    )


def _with(checkpointing: bool) -> str:
    return f"{'with' if checkpointing else 'without'} checkpointing"


def _counted(config: TrainConfig, variant: Variant, embedder: Embedder, devices: int) -> tuple[int, int, float, float]:
    """(queries, steps of an epoch, tokens, patches) of the data. Raises InputError where it is not there."""
    records = Records.load(config.data.dataset)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    traces = learnt_traces(config, variant, records)
    source = BatchSource(
        config, variant, records, traces=traces, encoder=embedder.encoder(), candidates=candidates, world_size=devices
    )
    rows = source.sample(min(SAMPLE, len(records)))
    tokens = patches = 0
    for chunk in source.encoder.chunks(rows, source.chunk, config.batch.micro_batch_patches):
        tokens += int(chunk.inputs["attention_mask"].sum())
        patches += len(chunk.inputs.get("pixel_values", ()))
    pairs = min(SAMPLE, len(records))
    more = 1 + config.data.hard_negatives / 2  # a negative is as long as a positive, about half of a pair
    return len(records), source.order.per_epoch, tokens / pairs * more, patches / pairs * more


def table(found: Plan) -> str:
    """For people."""
    billion = 1e9
    lines = [
        f"parameters   {found.parameters / billion:,.3f} B, of which {found.trained / billion:,.3f} B are trained",
        f"step         {found.step_rows:,} rows over {found.devices} device{'s' if found.devices > 1 else ''}",
        f"memory       {found.memory / billion:,.1f} GB a device, estimated"
        + (
            f" with {CPU_CHUNK} rows at once; batch.micro_batch_size: auto tries more on the GPU"
            if found.chunk == "auto"
            else ""
        ),
        f"rate         {found.mfu:.1%} of {found.peak / 1e12:,.0f} TFLOP/s a device ({found.source})",
    ]
    for run in found.runs:
        where = f"counted in {min(SAMPLE, run.queries)} of them" if run.counted == "data" else "M-BEIR-CoT's, as published"
        lines.append(
            f"{run.variant:<12} {run.steps:,} steps over {run.queries:,} queries; {run.tokens:,.0f} tokens a query with its "
            f"positive ({where}), {run.step_tokens:,.0f} a step; {run.step_s:,.3g} s a step, {run.hours:,.2f} hours"
        )
    lines.append(f"in all       {found.hours:,.2f} hours, {found.devices * found.hours:,.2f} device-hours, estimated")
    if found.missing is not None:
        lines.append(f"not counted  {found.missing}")
    return "\n".join(lines)
