"""Where M-BEIR keeps its files.

Source: the file listing of TIGER-Lab/M-BEIR. Query files of the training split are per dataset (tasks mixed); those of
validation and test are per dataset-task. MSCOCO's local pools are per split, all others are shared by the splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from schemas.errors import InputError
from schemas.mbeir import DATASET_IDS, DATASET_TASKS, QUERY_SPLITS, SPLITS, DatasetTask, QuerySplit

_SHARED: Final = {"oven": "infoseek", "infoseek": "oven"}
"""Datasets that have positives among each other's candidates."""
_OLDER_LAYOUTS: Final = ("train", "val", "test", "cand_pool/union_pool")


class QueryFile(NamedTuple):
    """A query file and what its name says about its rows; None where the name leaves it open."""

    path: Path
    split: QuerySplit
    dataset: str | None
    dataset_task: DatasetTask | None


class PoolFile(NamedTuple):
    """A candidate pool file. `scope` is ``local`` or ``global``."""

    path: Path
    scope: Literal["local", "global"]

    @property
    def name(self) -> str:
        """As in M-BEIR's file names: ``oven_task6``, ``mscoco_task0_test``, ``union_test``."""
        return self.path.name.removeprefix("mbeir_").removesuffix("_cand_pool.jsonl")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one M-BEIR root. A path that is returned need not exist."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Layout:
        """Raises InputError unless `root` contains M-BEIR in its current layout."""
        if not root.is_dir():
            raise InputError(
                f"no M-BEIR directory at {root}",
                "download it with `mbeir-cot mbeir fetch DIR`, or write the synthetic one with `mbeir-cot pocket world DIR`",
            )
        layout = cls(root)
        if any(True for _ in layout.query_files()) or any(True for _ in layout.pool_files()):
            return layout
        older = [name for name in _OLDER_LAYOUTS if (root / name).is_dir()]
        older += ["qrels/*.txt"] if any((root / "qrels").glob("*.txt")) else []
        if older:
            raise InputError(
                f"{root} contains an older layout of M-BEIR ({', '.join(older)})",
                "download the current one with `mbeir-cot mbeir fetch DIR`; images already extracted can be moved over",
            )
        nested = [path.name for path in sorted(root.iterdir()) if (path / "query").is_dir()]
        raise InputError(
            f"{root} contains no M-BEIR files (none of query/*/mbeir_*.jsonl, cand_pool/*/mbeir_*.jsonl)",
            f"did you mean {root / nested[0]}?" if nested else "name the directory that contains query/ and cand_pool/",
        )

    @property
    def instructions(self) -> Path:
        return self.root / "instructions" / "query_instructions.tsv"

    def queries(self, split: QuerySplit, task: DatasetTask | None = None, *, dataset: str | None = None) -> Path:
        """The query file of a dataset (``train``), a dataset-task (``val``, ``test``) or a union split."""
        folder = self.root / "query" / split
        match split:
            case "train":
                return folder / f"mbeir_{dataset or (task.dataset if task else None)}_train.jsonl"
            case "union_train":
                return folder / "mbeir_union_up_train.jsonl"
            case "union_val":
                return folder / "mbeir_union_val.jsonl"
            case _ if task is not None:
                return folder / f"mbeir_{task.name}_{split}.jsonl"
        raise ValueError(f"query files of split {split!r} are per dataset-task")

    def local_pool(self, task: DatasetTask, split: QuerySplit) -> Path | None:
        """None for MSCOCO's training split: its candidates are in the global pool only."""
        name = task.name
        if task.dataset == "mscoco":
            if split not in ("val", "test", "union_val"):
                return None
            name = f"{name}_{split.removeprefix('union_')}"
        return self.root / "cand_pool" / "local" / f"mbeir_{name}_cand_pool.jsonl"

    def target_pools(self, task: DatasetTask, split: QuerySplit) -> list[Path]:
        """The existing pools that may contain positives of a dataset-task, in look-up order.

        First the local pool, then the split's global one. Without a global pool, also the local pools of the dataset whose
        candidates may be positives: OVEN and InfoSeek share their encyclopedia.
        """
        whole = self.global_pool(split)
        paths = [self.local_pool(task, split), whole]
        if not whole.is_file():
            near = {task.dataset, _SHARED.get(task.dataset)}
            paths += [self.local_pool(other, split) for other in DATASET_TASKS if other.dataset in near]
        return [path for path in dict.fromkeys(paths) if path is not None and path.is_file()]

    def fetch_remedy(self, dataset: str, split: QuerySplit) -> str:
        """The command that downloads the candidates of a dataset for a split."""
        if dataset == "mscoco" and self.local_pool(DatasetTask("mscoco", 0), split) is None:
            return (
                f"`mbeir-cot mbeir fetch {self.root} --datasets mscoco --union` (MSCOCO's training candidates are in the "
                "global pool only; add --no-images if the images are here)"
            )
        return f"`mbeir-cot mbeir fetch {self.root} --datasets {dataset}` (add --no-images if the images are here)"

    def global_pool(self, split: QuerySplit) -> Path:
        name = split.removeprefix("union_")
        return self.root / "cand_pool" / "global" / f"mbeir_union_{name}_cand_pool.jsonl"

    def qrels(self, query_file: QueryFile) -> Path | None:
        """The qrels beside a query file; the union splits have none."""
        if query_file.split.startswith("union"):
            return None
        return self.root / "qrels" / query_file.split / f"{query_file.path.stem}_qrels.txt"

    def query_files(self) -> Iterator[QueryFile]:
        """The query files that exist, in the order of splits and of the benchmark's table."""
        for query_file in self.expected_query_files():
            if query_file.path.is_file():
                yield query_file

    def expected_query_files(self) -> Iterator[QueryFile]:
        for split in QUERY_SPLITS:
            match split:
                case "train":
                    for dataset in DATASET_IDS:
                        yield QueryFile(self.queries(split, dataset=dataset), split, dataset, None)
                case "val" | "test":
                    for task in DATASET_TASKS:
                        yield QueryFile(self.queries(split, task), split, task.dataset, task)
                case _:
                    yield QueryFile(self.queries(split), split, None, None)

    def pool_files(self) -> Iterator[PoolFile]:
        """The candidate pools that exist, local before global, each once."""
        seen: set[Path] = set()
        for task in DATASET_TASKS:
            for split in ("val", "test"):
                path = self.local_pool(task, split)
                if path is not None and path not in seen and path.is_file():
                    seen.add(path)
                    yield PoolFile(path, "local")
        for global_path in map(self.global_pool, SPLITS):
            if global_path.is_file():
                yield PoolFile(global_path, "global")

    def relative(self, path: Path) -> str:
        """The path below the root, for messages."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
