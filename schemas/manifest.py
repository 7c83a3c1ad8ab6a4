"""The description of a dataset directory: `manifest.json`, written last."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from schemas.labels import Agreement
from schemas.mbeir import Split

MANIFEST_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputDigest(_Frozen):
    """A file that the build read; the path is below the M-BEIR root."""

    path: str
    sha256: str
    rows: NonNegativeInt


class DataFile(_Frozen):
    """A file of the dataset; the path is below its directory."""

    path: str
    sha256: str
    rows: NonNegativeInt
    bytes: NonNegativeInt


class Model(_Frozen):
    name: str
    revision: str


class TaskCounts(_Frozen):
    """One dataset-task. `rejected` counts by ``stage: reason``."""

    dataset: str
    task_id: int
    queries: NonNegativeInt
    reasoning: NonNegativeInt
    bypass: NonNegativeInt
    rejected: dict[str, NonNegativeInt]
    left: NonNegativeInt = 0
    """Queries that were not needed, because enough records were accepted before (`accept.records`)."""

    @property
    def rejections(self) -> int:
        return sum(self.rejected.values())

    @property
    def think_rate(self) -> float | None:
        """Share of the records that reason."""
        records = self.reasoning + self.bypass
        return self.reasoning / records if records else None

    @property
    def kept(self) -> float | None:
        """Share of the queries that became records."""
        return (self.reasoning + self.bypass) / self.queries if self.queries else None


class Spread(_Frozen):
    """A distribution in five numbers: least, 5th, 50th and 95th percentile, greatest."""

    least: float
    p5: float
    median: float
    p95: float
    greatest: float


class CardExample(_Frozen):
    """A record that the card shows. Images are reduced files in the dataset; empty if there is none."""

    family: str
    id: str
    query_image: str
    positive_text: str
    positive_image: str


class Manifest(_Frozen):
    version: int = MANIFEST_VERSION
    name: str
    synthetic: bool
    license: str
    pipeline_version: str
    teacher: Model
    verifier: Model | None
    prompts: dict[str, str]
    """Template -> SHA-256 of it and what it includes."""
    config: dict[str, Any]
    """All settings that decide the content; paths and addresses are left out."""
    config_sha256: str
    inputs: tuple[InputDigest, ...]
    pools: tuple[InputDigest, ...]
    split: Split
    queries: NonNegativeInt
    records: NonNegativeInt
    rejections: NonNegativeInt
    malformed_lines: NonNegativeInt
    owed: NonNegativeInt
    """Rejections whose request got no answer. Running the build again sends these requests again."""
    tasks: tuple[TaskCounts, ...]
    left: NonNegativeInt = 0
    """Queries of the input that were not needed (`accept.records`); `queries` does not count them."""
    short: dict[str, NonNegativeInt] = {}
    """Kind -> records, where the input ended before there were `accept.records`."""
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt
    spreads: dict[str, Spread] = {}
    """Measured quantity -> its distribution over the records: words and tokens."""
    examples: tuple[CardExample, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    """With people's labels, where they were compared (`mbeir-cot agreement --card`)."""
    accepted: tuple[str, ...] = ()
    """Ids of rows with a suspected secret or local path that somebody reviewed and accepted."""
    files: tuple[DataFile, ...]
