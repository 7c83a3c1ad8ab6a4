"""Predicts the cost of a whole build from a sample of real requests."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.annotate.annotation import Annotation
from pipeline.annotate.preview import preview_annotations
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import collect
from pipeline.serving.teacher_servers import Endpoints
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.record import Stage

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
    """Totals scale with the number of queries; ranges are 90% intervals of the sample's mean (not of the time).

    Raises InputError if there is no query, or if the sample says nothing because its inputs cannot be used.
    """
    unlimited = config.model_copy(update={"input": config.input.model_copy(update={"limit": None})})
    drawn = config.model_copy(update={"input": config.input.model_copy(update={"limit": sample})})

    with tempfile.TemporaryDirectory() as scratch:
        whole = len(collect(Layout.open(config.mbeir), unlimited.input, rejects=Path(scratch) / "malformed.jsonl"))
    if not whole:
        raise InputError(
            f"no query of {config.mbeir} is left by the settings of `input`",
            "check input.split, input.datasets and input.tasks; `mbeir-cot mbeir stats DIR` shows what is there",
        )
    began = time.monotonic()
    annotations = await preview_annotations(drawn, endpoints)
    seconds = time.monotonic() - began
    _refuse_unusable(annotations, config)
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


def _refuse_unusable(annotations: Sequence[Annotation], config: BuildConfig) -> None:
    """Raises InputError where a build would stop for its images (`early_stop.inputs`), or no query could be asked about."""
    unread = [annotation.unread for annotation in annotations if annotation.unread is not None]
    reasons = Counter(str(problem.reason) for problem in unread).most_common(1)
    if reasons and (reasons[0][1] > config.early_stop.inputs * len(annotations) or len(unread) == len(annotations)):
        reason, count = reasons[0]
        raise InputError(
            f"{count:,} of {len(annotations):,} sampled queries were rejected for {reason}, so they do not say what a build "
            f"costs; the last: {unread[-1].problem}",
            f"check that the images below {config.mbeir} are complete and their disk is mounted, then run again; or leave "
            "datasets out with input.datasets",
        )
    ended = [one.rejection for one in annotations if one.rejection is not None and one.rejection.stage is Stage.INPUT]
    if len(ended) == len(annotations):
        named = ", ".join(f"{name} ({count:,})" for name, count in Counter(cause.reason for cause in ended).most_common(3))
        raise InputError(
            f"all {len(ended):,} sampled queries were rejected before a request, so they do not say what a build costs: "
            f"{named}; the last: {ended[-1].detail}",
            f"`mbeir-cot mbeir check {config.mbeir}` names the rows",
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
