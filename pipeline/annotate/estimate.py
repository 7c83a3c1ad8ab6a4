"""Predicts the cost of a whole build from a sample of real requests."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.annotate.preview import preview_annotations
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import collect
from pipeline.serving.teacher_servers import Endpoints
from schemas.config import BuildConfig

_CONFIDENCE = 0.9


class EstimateLine(BaseModel):
    model_config = ConfigDict(frozen=True)

    what: str
    sample: str
    whole: str
    spread: str


class Estimate(BaseModel):
    model_config = ConfigDict(frozen=True)

    queries: int
    sample: int
    seconds: float
    in_flight: int
    calls: float
    prompt_tokens: float
    completion_tokens: float
    hours: float
    gpu_hours: float
    rows: tuple[EstimateLine, ...]


async def estimate(config: BuildConfig, endpoints: Endpoints, sample: int, gpus: int) -> Estimate:
    """Totals scale with the number of queries; ranges are 90% intervals of the sample's mean (not of the time)."""
    unlimited = config.model_copy(update={"input": config.input.model_copy(update={"limit": None})})
    drawn = config.model_copy(update={"input": config.input.model_copy(update={"limit": sample})})

    with tempfile.TemporaryDirectory() as scratch:
        whole = len(collect(Layout.open(config.mbeir), unlimited.input, rejects=Path(scratch) / "malformed.jsonl"))
    began = time.monotonic()
    annotations = await preview_annotations(drawn, endpoints)
    seconds = time.monotonic() - began
    calls = np.array([annotation.asked for annotation in annotations], float)
    read = np.array([sum(answer.prompt_tokens for answer in annotation.answers) for annotation in annotations], float)
    written = np.array([sum(answer.completion_tokens for answer in annotation.answers) for annotation in annotations], float)
    accepted = np.array([annotation.rejection is None for annotation in annotations], float)
    # each group of GPUs runs its own server; the sample used one
    size = config.teacher.server.tensor_parallel_size if config.teacher.server is not None else 1
    managed = config.teacher.hosting == "managed" and gpus
    hours = seconds / len(annotations) * whole / 3600 / (max(1, gpus // size) if managed else 1)
    # time is proportional to the tokens, so its range is theirs
    low, high = (bound / max(1e-9, (read + written).mean() * whole) for bound in _interval(read + written, whole))
    spread = f"{hours * low:,.2f} to {hours * high:,.2f} h at the sample's rate"
    rows = [_line(name, values, whole) for name, values in (("calls", calls), ("tokens in", read), ("tokens out", written))]
    rows.append(_line("records", accepted, whole))
    rows.append(EstimateLine(what="wall time", sample=f"{seconds:,.0f} s", whole=f"{hours:,.2f} h", spread=spread))
    if gpus:
        spread = f"{hours * low * gpus:,.1f} to {hours * high * gpus:,.1f} at the sample's rate"
        rows.append(EstimateLine(what="GPU-hours", sample="", whole=f"{hours * gpus:,.1f}", spread=spread))
    return Estimate(
        queries=whole,
        sample=len(annotations),
        seconds=seconds,
        in_flight=config.teacher.transport.max_in_flight,
        calls=calls.mean() * whole,
        prompt_tokens=read.mean() * whole,
        completion_tokens=written.mean() * whole,
        hours=hours,
        gpu_hours=hours * gpus,
        rows=tuple(rows),
    )


def _line(what: str, values: NDArray[np.float64], whole: int) -> EstimateLine:
    low, high = _interval(values, whole)
    return EstimateLine(
        what=what,
        sample=f"{values.sum():,.0f}",
        whole=f"{values.mean() * whole:,.0f}",
        spread=f"{low:,.0f} to {high:,.0f}",
    )


def _interval(values: NDArray[np.float64], whole: int) -> tuple[float, float]:
    mean = values.mean()
    half = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return max(0.0, mean - half) * whole, (mean + half) * whole
