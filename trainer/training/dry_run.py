"""`mbeir-cot train CONFIG --dry-run`: parameters, memory and time of a training, without loading weights or taking a step."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.errors import InputError
from schemas.training import TrainConfig, Variant
from trainer.data.batches import CPU_CHUNK, BatchSource
from trainer.data.dataset import Candidates
from trainer.data.mined import training_records
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
"""Queries whose tokens are counted."""


class VariantPlan(BaseModel):
    """One variant. Tokens and patches: of a query, its labels, a positive and hard negatives."""

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
    """In the data that the config names; or M-BEIR-CoT's published counts, if there is no data."""


class Plan(BaseModel):
    """Of all variants. memory: bytes on a device. mfu: useful share of `peak`, a device's FLOP/s."""

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
    runs: tuple[VariantPlan, ...]
    missing: str | None
    """Why the data could not be counted."""

    @property
    def hours(self) -> float:
        return sum(run.hours for run in self.runs)


def make_plan(config: TrainConfig, devices: int, *, mfu: float | None = None, peak: float = PEAK) -> Plan:
    """peak: FLOP/s of a device. mfu: its useful share [default: measured with the 7B's shape]."""
    embedder = Embedder.create(config.model, config.data.prompts, weights=False)
    checkpointing = config.model.gradient_checkpointing
    share = mfu if mfu is not None else MEASURED_SHARE[checkpointing]
    how = "given" if mfu is not None else f"measured on one {MEASURED_ON} with the 7B's shape, {_with(checkpointing)}"
    runs, missing = [], None
    for variant in config.variants:
        run, cause = _plan_variant(config, variant, embedder, devices, rate=devices * peak * share)
        runs.append(run)
        missing = cause or missing
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    chunk = config.batch.micro_batch_size
    text: Any = embedder.model.config.text_config
    row_tokens = max(run.tokens for run in runs) / (2 + config.data.negatives_per_query)
    return Plan(
        parameters=sum(p.numel() for p in embedder.parameters()),
        trained=trained,
        devices=devices,
        step_rows=config.batch.global_batch_size * (2 + config.data.negatives_per_query),
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


def _plan_variant(
    config: TrainConfig, variant: Variant, embedder: Embedder, devices: int, *, rate: float
) -> tuple[VariantPlan, str | None]:
    """(its plan, why the data could not be counted). rate: useful FLOP/s of all devices."""
    named = list(embedder.model.named_parameters())
    language = sum(p.numel() for name, p in named if "language_model" in name and "embed_tokens" not in name)
    vision = sum(p.numel() for name, p in named if ".visual." in name)
    batch = config.batch.global_batch_size
    counted: Literal["data", "published"] = "data"
    missing = None
    try:
        queries, per_epoch, tokens, patches = _count_data(config, variant, embedder, devices)
    except InputError as error:
        missing = str(error).splitlines()[0]
        queries, counted = PUBLISHED_ROWS, "published"
        per_epoch, tokens, patches = queries // batch, PUBLISHED_TOKENS[variant], PUBLISHED_PATCHES
    steps = config.optimiser.max_steps or max(1, math.ceil(config.optimiser.epochs * per_epoch))
    step_s = useful_flop(language, vision, tokens=batch * tokens, patches=batch * patches) / rate
    plan = VariantPlan(
        variant=variant,
        queries=queries,
        steps=steps,
        tokens=tokens,
        patches=patches,
        step_tokens=batch * tokens,
        step_s=step_s,
        hours=steps * step_s / 3600,
        counted=counted,
    )
    return plan, missing


def _with(checkpointing: bool) -> str:
    return f"{'with' if checkpointing else 'without'} checkpointing"


def _count_data(config: TrainConfig, variant: Variant, embedder: Embedder, devices: int) -> tuple[int, int, float, float]:
    """(queries, steps per epoch, tokens, patches) of the data. Raises InputError if there is none."""
    records = training_records(config.data)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    traces = learnt_traces(config, variant, records)
    source = BatchSource(
        config, variant, records, traces=traces, encoder=embedder.encoder(), candidates=candidates, world_size=devices
    )
    rows = source.sample(min(SAMPLE, len(records)))
    tokens = patches = 0
    for chunk in source.encoder.make_chunks(rows, source.chunk, config.batch.micro_batch_patches):
        tokens += int(chunk.inputs["attention_mask"].sum())
        patches += len(chunk.inputs.get("pixel_values", ()))
    pairs = min(SAMPLE, len(records))
    more = 1 + config.data.negatives_per_query / 2  # a negative is as long as a positive, about half of a pair
    return len(records), source.sampler.per_epoch, tokens / pairs * more, patches / pairs * more


def format_plan(plan: Plan) -> str:
    """A text for people."""
    billion = 1e9
    lines = [
        f"parameters   {plan.parameters / billion:,.3f} B, of which {plan.trained / billion:,.3f} B are trained",
        f"step         {plan.step_rows:,} rows over {plan.devices} device{'s' if plan.devices > 1 else ''}",
        f"memory       {plan.memory / billion:,.1f} GB a device, estimated"
        + (
            f" with {CPU_CHUNK} rows at once; batch.micro_batch_size: auto tries more on the GPU"
            if plan.chunk == "auto"
            else ""
        ),
        f"rate         {plan.mfu:.1%} of {plan.peak / 1e12:,.0f} TFLOP/s a device ({plan.source})",
    ]
    for run in plan.runs:
        where = f"counted in {min(SAMPLE, run.queries)} of them" if run.counted == "data" else "M-BEIR-CoT's, as published"
        lines.append(
            f"{run.variant:<12} {run.steps:,} steps over {run.queries:,} queries; {run.tokens:,.0f} tokens a query with its "
            f"positive ({where}), {run.step_tokens:,.0f} a step; {run.step_s:,.3g} s a step, {run.hours:,.2f} hours"
        )
    lines.append(f"in all       {plan.hours:,.2f} hours, {plan.devices * plan.hours:,.2f} device-hours, estimated")
    if plan.missing is not None:
        lines.append(f"not counted  {plan.missing}")
    return "\n".join(lines)
