"""`mbeir-cot train CONFIG --dry-run`: parameters, memory and time of a training, without loading weights or taking a step."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, NamedTuple

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

_WITHOUT_DATA: Final = "give --published: M-BEIR-CoT's published counts are used then"


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
    """In the data that the config names; or M-BEIR-CoT's published counts, if those were asked for."""


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

    @property
    def hours(self) -> float:
        return sum(run.hours for run in self.runs)


def make_plan(
    config: TrainConfig, devices: int, *, mfu: float | None = None, peak: float = PEAK, published: bool = False
) -> Plan:
    """peak: FLOP/s of a device. mfu: its useful share [default: measured with the 7B's shape].

    published: plan with M-BEIR-CoT's published counts, reading no data. Otherwise raises what the training would for its data.
    """
    embedder = Embedder.create(config.model, config.data.prompts, weights=False)
    checkpointing = config.model.gradient_checkpointing
    share = mfu if mfu is not None else MEASURED_SHARE[checkpointing]
    how = "given" if mfu is not None else f"measured on one {MEASURED_ON} with the 7B's shape, {_with(checkpointing)}"
    runs = []
    for variant in config.variants:
        counts = _published(config, variant) if published else _count_data(config, variant, embedder, devices)
        runs.append(_plan_variant(config, variant, embedder, counts, rate=devices * peak * share))
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
    )


class _Counts(NamedTuple):
    """Of a variant's data. Tokens and patches: of a query, its labels, a positive and hard negatives."""

    queries: int
    steps_per_epoch: int
    tokens: float
    patches: float
    source: Literal["data", "published"]


def _plan_variant(config: TrainConfig, variant: Variant, embedder: Embedder, counts: _Counts, *, rate: float) -> VariantPlan:
    """rate: useful FLOP/s of all devices."""
    named = list(embedder.model.named_parameters())
    language = sum(p.numel() for name, p in named if "language_model" in name and "embed_tokens" not in name)
    vision = sum(p.numel() for name, p in named if ".visual." in name)
    batch = config.batch.global_batch_size
    steps = config.optimiser.max_steps or max(1, math.ceil(config.optimiser.epochs * counts.steps_per_epoch))
    step_s = useful_flop(language, vision, tokens=batch * counts.tokens, patches=batch * counts.patches) / rate
    return VariantPlan(
        variant=variant,
        queries=counts.queries,
        steps=steps,
        tokens=counts.tokens,
        patches=counts.patches,
        step_tokens=batch * counts.tokens,
        step_s=step_s,
        hours=steps * step_s / 3600,
        counted=counts.source,
    )


def _with(checkpointing: bool) -> str:
    return f"{'with' if checkpointing else 'without'} checkpointing"


def _published(config: TrainConfig, variant: Variant) -> _Counts:
    per_epoch = PUBLISHED_ROWS // config.batch.global_batch_size
    more = _with_negatives(config)
    return _Counts(PUBLISHED_ROWS, per_epoch, PUBLISHED_TOKENS[variant] * more, PUBLISHED_PATCHES * more, "published")


def _with_negatives(config: TrainConfig) -> float:
    """Tokens of a query with hard negatives, in those without: a negative is as long as a positive, about half of a pair."""
    return 1 + config.data.negatives_per_query / 2


def _count_data(config: TrainConfig, variant: Variant, embedder: Embedder, devices: int) -> _Counts:
    try:
        records = training_records(config.data)
        candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
        traces = learnt_traces(config, variant, records)
    except InputError as error:
        raise InputError(error.problem, f"{error.remedy}. To plan without data, {_WITHOUT_DATA}".removeprefix(". ")) from error
    source = BatchSource(
        config, variant, records, traces=traces, encoder=embedder.encoder(), candidates=candidates, world_size=devices
    )
    sequences = source.sample(min(SAMPLE, len(records)))
    tokens = patches = 0
    for chunk in source.encoder.make_chunks(sequences, source.chunk, config.batch.micro_batch_patches):
        tokens += int(chunk.inputs["attention_mask"].sum())
        patches += len(chunk.inputs.get("pixel_values", ()))
    pairs = min(SAMPLE, len(records))
    more = _with_negatives(config)
    return _Counts(len(records), source.sampler.per_epoch, tokens / pairs * more, patches / pairs * more, "data")


def format_plan(plan: Plan) -> str:
    """A text for people."""
    billion = 1e9
    lines = [
        f"parameters   {plan.parameters / billion:,.3f} B, of which {plan.trained / billion:,.3f} B are trained",
        f"step         {plan.step_rows:,} sequences over {plan.devices} device{'s' if plan.devices > 1 else ''}",
        f"memory       {plan.memory / billion:,.1f} GB a device, estimated"
        + (
            f" with {CPU_CHUNK} sequences at once; batch.micro_batch_size: auto tries more on the GPU"
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
    return "\n".join(lines)
