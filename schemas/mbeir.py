"""M-BEIR's own vocabulary and rows: datasets, tasks, ids, queries, candidates, instructions.

Source: the M-BEIR dataset card and UniIR's preprocessing (``data/preprocessing/utils.py``). A row is validated here once,
where it enters; inside, values are right by construction. Two kinds of defect are told apart:

* *structure* (wrong type, unknown dataset, impossible task) makes the line malformed: validation raises;
* *content* (a text query without text, an image query without an image path) leaves a well-formed row that cannot be used:
  ``defects`` names what is missing, and code that uses the row records a rejection.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
EvaluationSplit = Literal["val", "test"]
EVALUATION_SPLITS: Final[tuple[EvaluationSplit, ...]] = ("val", "test")
QuerySplit = Literal["train", "val", "test", "union_train", "union_val"]
"""Splits of query files. The union files contain the queries of all datasets of a split."""
QUERY_SPLITS: Final[tuple[QuerySplit, ...]] = (*SPLITS, "union_train", "union_val")


class Modality(StrEnum):
    TEXT = "text"
    IMAGE = "image"
    IMAGE_TEXT = "image,text"

    @property
    def has_text(self) -> bool:
        return "text" in self

    @property
    def has_image(self) -> bool:
        return "image" in self


DATASET_IDS: Final[dict[str, int]] = {
    "visualnews": 0,
    "fashion200k": 1,
    "webqa": 2,
    "edis": 3,
    "nights": 4,
    "oven": 5,
    "infoseek": 6,
    "fashioniq": 7,
    "cirr": 8,
    "mscoco": 9,
}
"""Dataset name as in M-BEIR's file names -> the number before the colon of its qids and dids."""

DATASET_NAMES: Final[dict[int, str]] = {number: name for name, number in DATASET_IDS.items()}

TASK_MODALITIES: Final[dict[int, tuple[Modality, Modality]]] = {
    0: (Modality.TEXT, Modality.IMAGE),
    1: (Modality.TEXT, Modality.TEXT),
    2: (Modality.TEXT, Modality.IMAGE_TEXT),
    3: (Modality.IMAGE, Modality.TEXT),
    4: (Modality.IMAGE, Modality.IMAGE),
    5: (Modality.IMAGE, Modality.IMAGE_TEXT),  # declared by M-BEIR, used by no dataset
    6: (Modality.IMAGE_TEXT, Modality.TEXT),
    7: (Modality.IMAGE_TEXT, Modality.IMAGE),
    8: (Modality.IMAGE_TEXT, Modality.IMAGE_TEXT),
}
"""task_id -> (query modality, candidate modality)."""


class DatasetTask(NamedTuple):
    """One of the 16 rows of an M-BEIR result table."""

    dataset: str
    task_id: int

    @property
    def name(self) -> str:
        """As in M-BEIR's file names, e.g. ``oven_task6``."""
        return f"{self.dataset}_task{self.task_id}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """``oven_task6`` -> oven, 6. Raises ValueError for what is no dataset-task of M-BEIR."""
        dataset, separator, number = name.rpartition("_task")
        if not separator or dataset not in DATASET_IDS or not number.isdecimal() or int(number) not in TASK_MODALITIES:
            raise ValueError(f"{name!r} is no dataset-task of M-BEIR, such as oven_task6")
        return cls(dataset, int(number))

    @property
    def query_modality(self) -> Modality:
        return TASK_MODALITIES[self.task_id][0]

    @property
    def cand_modality(self) -> Modality:
        return TASK_MODALITIES[self.task_id][1]


DATASET_TASKS: Final[tuple[DatasetTask, ...]] = tuple(
    DatasetTask(dataset, task)
    for dataset, task in [
        ("visualnews", 0),
        ("mscoco", 0),
        ("fashion200k", 0),
        ("webqa", 1),
        ("edis", 2),
        ("webqa", 2),
        ("visualnews", 3),
        ("mscoco", 3),
        ("fashion200k", 3),
        ("nights", 4),
        ("oven", 6),
        ("infoseek", 6),
        ("fashioniq", 7),
        ("cirr", 7),
        ("oven", 8),
        ("infoseek", 8),
    ]
)
"""In the order of UniIR's ``embed.yaml``: the global test pool is concatenated in this order, which decides ties."""

QID_HASH_BASE: Final = 500_000
DID_HASH_BASE: Final = 10_000_000


_PLAIN_ID: Final = re.compile(r"[0-9]:[1-9][0-9]{0,6}").fullmatch


def parse_id(identifier: str) -> tuple[int, int]:
    """``"9:42"`` -> ``(9, 42)``. Raises ValueError unless it is ``<dataset id>:<n>`` with a known dataset and n >= 1."""
    if _PLAIN_ID(identifier):
        return int(identifier[0]), int(identifier[2:])
    dataset, _, number = identifier.partition(":")
    if not (dataset.isdecimal() and dataset.isascii() and number.isdecimal() and number.isascii()):
        raise ValueError(f"{identifier!r} is not of the form '<dataset id>:<number>'")
    pair = int(dataset), int(number)
    if pair[0] not in DATASET_NAMES:
        raise ValueError(f"{identifier!r} names the unknown dataset id {pair[0]} (known: 0 to 9)")
    if pair[1] < 1:
        raise ValueError(f"{identifier!r}: numbers start at 1")
    return pair


def hash_qid(qid: str) -> int:
    """UniIR's int64 form of a qid: ``dataset_id * 500_000 + n``."""
    return _hash(qid, QID_HASH_BASE)


def unhash_qid(hashed: int) -> str:
    return f"{hashed // QID_HASH_BASE}:{hashed % QID_HASH_BASE}"


def hash_did(did: str) -> int:
    """UniIR's int64 form of a did: ``dataset_id * 10_000_000 + n``."""
    return _hash(did, DID_HASH_BASE)


def unhash_did(hashed: int) -> str:
    return f"{hashed // DID_HASH_BASE}:{hashed % DID_HASH_BASE}"


def _hash(identifier: str, base: int) -> int:
    dataset, number = parse_id(identifier)
    if number >= base:
        raise ValueError(f"{identifier!r}: UniIR's hash holds numbers below {base:,} only")
    return dataset * base + number


def _modality(value: Any) -> Any:
    return "image,text" if value == "text,image" else value  # the dataset card's spelling; the files have the other


def _source_content(value: Any) -> Any:
    # Since M-BEIR was re-issued this is a string of JSON; older downloads contain the object itself.
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _dids(value: Any) -> Any:
    if value is None:
        return ()
    if isinstance(value, list) and value and isinstance(value[0], dict):  # the dataset card's form: [{"did": "9:1"}, …]
        return [item.get("did") if isinstance(item, dict) else item for item in value]
    return value


Id = Annotated[str, StringConstraints(pattern=r"^[0-9]:[1-9][0-9]{0,6}$")]
"""``<dataset id 0..9>:<n>``, 1 <= n < 10,000,000, the range of UniIR's did hash (`Query` checks the narrower one of qids)."""

_ModalityField = Annotated[Modality, BeforeValidator(_modality)]
_SourceContent = Annotated[str | None, BeforeValidator(_source_content)]
_Dids = Annotated[tuple[Id, ...], BeforeValidator(_dids)]


class _Row(BaseModel):
    # Unknown keys are allowed: downloads differ in them, and `mbeir check` reports them.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=False)


class Query(_Row):
    """One line of a query file. Paths are relative to the M-BEIR root."""

    qid: Id
    query_txt: str | None = None
    query_img_path: str | None = None
    query_modality: _ModalityField
    query_src_content: _SourceContent = None
    pos_cand_list: _Dids = Field(min_length=1)
    neg_cand_list: _Dids = ()
    task_id: Annotated[int, Field(ge=0, le=8, strict=True)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if TASK_MODALITIES[self.task_id][0] is not self.query_modality:
            expected = TASK_MODALITIES[self.task_id][0]
            raise ValueError(f"task_id {self.task_id} has {expected} queries, not {self.query_modality}")
        if len(self.qid) > 8 or int(self.qid[2:]) >= QID_HASH_BASE:
            raise ValueError(f"qid {self.qid!r}: UniIR's hash holds numbers below {QID_HASH_BASE:,} only")
        return self

    @property
    def dataset_id(self) -> int:
        return int(self.qid[0])

    @property
    def dataset_task(self) -> DatasetTask:
        return _dataset_task(self.qid[0], self.task_id)

    @property
    def defects(self) -> tuple[str, ...]:
        """What the row lacks for its modality: ``empty_text``, ``no_image_path``."""
        return _defects(self.query_modality, self.query_txt, self.query_img_path)


class Candidate(_Row):
    """One line of a candidate pool file. Paths are relative to the M-BEIR root."""

    did: Id
    txt: str | None = None
    img_path: str | None = None
    modality: _ModalityField
    src_content: _SourceContent = None

    @property
    def defects(self) -> tuple[str, ...]:
        """What the row lacks for its modality: ``empty_text``, ``no_image_path``."""
        return _defects(self.modality, self.txt, self.img_path)


@lru_cache(maxsize=256)
def _dataset_task(dataset_digit: str, task_id: int) -> DatasetTask:
    """Cached: a query's task is looked up many times."""
    return DatasetTask(DATASET_NAMES[int(dataset_digit)], task_id)


def _defects(modality: Modality, text: str | None, image_path: str | None) -> tuple[str, ...]:
    defects: tuple[str, ...] = ()
    if modality.has_text and not (text and not text.isspace()):
        defects += ("empty_text",)
    if modality.has_image and not image_path:
        defects += ("no_image_path",)
    return defects


class Instruction(BaseModel):
    """One row of ``instructions/query_instructions.tsv``: the ways to ask for one kind of candidate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: Annotated[int, Field(ge=0, le=9)]
    dataset_name: str
    query_modality: _ModalityField
    cand_modality: _ModalityField
    prompts: Annotated[tuple[str, ...], Field(min_length=1)]


class Qrel(NamedTuple):
    """One line of a qrels file: ``qid 0 did relevance task_id``."""

    qid: str
    did: str
    relevance: int
    task_id: int
