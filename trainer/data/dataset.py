"""The records that TRACE is trained on, and their candidates.

A dataset is the output of `mbeir-cot build`: a directory, or a Hub repository of the same files. Only the columns that training
needs are in memory; images and candidates are read when a batch is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.mbeir.candidates import fetch_held
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.content import ContentPart, content_parts
from schemas.errors import ConfigError, InputError
from schemas.mbeir import DATASET_TASKS, Candidate, DatasetTask, Split
from schemas.os_errors import explained, refused_by_system
from schemas.record import EMB_TOKEN

COLUMNS: Final = (
    "id",
    "qid",
    "dataset",
    "split",
    "task_id",
    "instruction",
    "query_text",
    "query_image",
    "positives",
    "hard_negatives",
    "multiplicity",
    "route",
    "answer",
    "target",
)
PARTS: Final = "query_parts"
"""An optional column, for queries with several images: `schemas.content`, instead of query_text and query_image."""


class Item(NamedTuple):
    """One record as training needs it."""

    id: str
    qid: str
    task: DatasetTask
    instruction: str
    text: str | None
    image: str | None
    positives: tuple[str, ...]
    hard_negatives: tuple[str, ...]
    reasons: bool
    answer: str | None
    target: str
    parts: tuple[ContentPart, ...] = ()
    """The whole query if it has several images, instead of `text` and `image`."""
    yes: tuple[float | None, ...] = ()
    """The verifier's P(yes) of each hard negative, and of the first positive, where mined negatives were judged."""
    positive_yes: float | None = None

    @property
    def trace(self) -> str:
        """The text before the embedding token; empty for a bypass."""
        return self.target.removesuffix(EMB_TOKEN)


class Records:
    """A dataset's `default` config as an Arrow table. Picklable."""

    def __init__(self, table: pa.Table, name: str, digest: str) -> None:
        self.table, self.name, self.digest = table.combine_chunks(), name, digest

    @classmethod
    def load(cls, dataset: str) -> Records:
        """From a directory or a Hub repository. Raises InputError if it is no such dataset."""
        files = sorted((local_directory(dataset) / "data").glob("*.parquet"))
        if not files:
            raise InputError(f"{dataset} holds no data/*.parquet", "name a dataset that `mbeir-cot build` wrote")
        digest, tables = hashlib.sha256(), []
        for path in files:
            try:
                schema = pq.read_schema(path)
                if missing := [name for name in COLUMNS if name not in schema.names]:
                    raise InputError(
                        f"{path} has no column {', '.join(missing)}", "name a dataset that `mbeir-cot build` wrote"
                    )
                tables.append(pq.read_table(path, columns=[*COLUMNS, *([PARTS] if PARTS in schema.names else [])]))
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(
                    f"{path} cannot be read: {error}", explained(error, "build or download the dataset again").remedy
                ) from error
            digest.update(path.read_bytes())
        table = pa.concat_tables(tables, promote_options="default")
        ends = pc.all(pc.ends_with(table["target"], EMB_TOKEN)).as_py()
        if len(table) == 0 or not ends:
            raise InputError(f"{dataset} has no records, or targets that do not end in {EMB_TOKEN}", "build the dataset again")
        return cls(table, dataset, digest.hexdigest())

    def __len__(self) -> int:
        return len(self.table)

    def item(self, index: int) -> Item:
        record: dict[str, Any] = self.table.slice(index, 1).to_pylist()[0]
        return Item(
            id=record["id"],
            qid=record["qid"],
            task=DatasetTask(record["dataset"], record["task_id"]),
            instruction=record["instruction"],
            text=record["query_text"],
            image=record["query_image"],
            positives=tuple(record["positives"]),
            hard_negatives=tuple(record["hard_negatives"]),
            reasons=record["route"] == "reasoning",
            answer=record["answer"],
            target=record["target"],
            parts=content_parts(f"{self.name}, record {record['id']}", record.get(PARTS)),
            yes=tuple(record.get("yes") or ()),
            positive_yes=record.get("positive_yes"),
        )

    def without(self, tasks: Sequence[str]) -> Records:
        """A copy without the records of these dataset-tasks.

        Raises ConfigError if no record is left, or a dataset-task has none.
        """
        if not tasks:
            return self
        pairs = zip(self.table["dataset"].to_pylist(), self.table["task_id"].to_pylist(), strict=True)
        names = [DatasetTask(*pair).name for pair in pairs]
        if absent := [name for name in tasks if name not in set(names)]:
            raise ConfigError(
                f"data.hold_out: {self.name} has no record of {', '.join(absent)}",
                f"leave the name out; there are {', '.join(sorted(set(names)))}",
            )
        kept = self.table.filter(pa.array([name not in tasks for name in names]))
        if not len(kept):
            raise ConfigError(f"data.hold_out leaves no record of {self.name}", "hold out fewer dataset-tasks")
        return Records(kept, self.name, self.digest)

    def query_images(self) -> list[list[str]]:
        """The images of each record's query."""
        images = [[image] if image else [] for image in self.table["query_image"].to_pylist()]
        if PARTS in self.table.column_names:
            for of_query, parts in zip(images, self.table[PARTS].to_pylist(), strict=True):
                of_query += [part["image"] for part in parts or () if part.get("image")]
        return images

    def groups(self, *, repeat: bool) -> dict[str, list[int]]:
        """Dataset-task -> indices of its records; `repeat`: each as often as its multiplicity."""
        groups: dict[str, list[int]] = {}
        columns = (self.table[name].to_pylist() for name in ("dataset", "task_id", "multiplicity"))
        for index, (dataset, task_id, times) in enumerate(zip(*columns, strict=True)):
            groups.setdefault(f"{dataset}_task{task_id}", []).extend([index] * (times if repeat else 1))
        return groups

    def traces(self) -> dict[str, str]:
        """Record id -> trace, of the reasoning records."""
        reasoning = self.table.filter(pc.equal(self.table["route"], "reasoning")).select(["id", "target"])
        pairs = zip(reasoning["id"].to_pylist(), reasoning["target"].to_pylist(), strict=True)
        return {identifier: target.removesuffix(EMB_TOKEN) for identifier, target in pairs}

    @property
    def split(self) -> Split:
        split: Split = self.table["split"][0].as_py()
        return split


class Candidates:
    """Candidates by did: in the split's global pool, or where M-BEIR is only there in part in its local ones. Picklable."""

    def __init__(self, mbeir: Path, split: Split, cache: Path | None) -> None:
        paths = self.paths(mbeir, split)
        self._pools = [CandidatePool.open(path, cache) for path in paths]
        self._where = str(paths[0] if len(paths) == 1 else paths[0].parent)

    @staticmethod
    def paths(mbeir: Path, split: Split) -> list[Path]:
        """The pool files. Raises InputError if there is none."""
        layout = Layout.open(mbeir)
        paths = [layout.global_pool(split)]
        if not paths[0].is_file():
            local = (layout.local_pool(task, split) for task in DATASET_TASKS)
            paths = list(dict.fromkeys(path for path in local if path is not None and path.is_file()))
        if not paths:
            raise InputError(
                f"{mbeir} has no candidate pool for {split}",
                f"`mbeir-cot mbeir fetch {mbeir} --union --no-images` brings the global one",
            )
        return paths

    def fetch(self, dids: Sequence[str]) -> list[Candidate]:
        """In the order asked. Raises InputError for dids that no pool has."""
        found = fetch_held(self._pools, dids)
        if missing := [did for did in dids if did not in found]:
            raise InputError(
                f"{self._where} does not hold {', '.join(missing[:5])}, a positive of the dataset's",
                "the dataset was built from another M-BEIR; name that one in data.mbeir",
            )
        return [found[did] for did in dids]


def local_directory(dataset: str) -> Path:
    """`dataset` itself if it is a directory (a build's, too); otherwise the Hub repository of that name, downloaded."""
    directory = Path(dataset)
    if (directory / "dataset" / "data").is_dir():
        return directory / "dataset"
    if directory.exists():
        return directory
    if dataset.count("/") != 1 or dataset.startswith((".", "/")):
        raise InputError(
            f"no dataset at {dataset}", "run `mbeir-cot build` first (`make build-dataset`), or name a Hub repository"
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (only where something is downloaded)
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=["data/*.parquet", "manifest.json"]))
    except (RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        if (refused := refused_by_system(error)) is not None:
            raise InputError(f"{dataset} cannot be downloaded: {refused.cause}", f"{refused.remedy}; then run again") from error
        raise InputError(
            f"the dataset {dataset} is no directory and cannot be downloaded ({type(error).__name__})",
            "check the name, the network and the token",
        ) from error
