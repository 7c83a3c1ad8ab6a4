"""Chats: LLaMA-Factory and ms-swift. A picture is ``<image>`` in a text and a path in a list beside it.

Parquet with an explicit schema: `datasets` guesses a JSON file's types from its first rows, and after ten megabytes without an
image it rejects all later ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.export.parts import Part, header
from pipeline.export.samples import Sample, Side, side_of
from pipeline.export.writer_result import Written
from pipeline.mbeir.image_store import ImageStore

_TURNS: Final = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PATHS: Final = pa.list_(pa.string())
_CHAT: Final = pa.schema([("messages", _TURNS), ("images", _PATHS)])
_PAIR: Final = pa.schema(
    [
        *_CHAT,
        ("positive_messages", pa.list_(_TURNS)),
        ("positive_images", pa.list_(_PATHS)),
        ("negative_messages", pa.list_(_TURNS)),
        ("negative_images", pa.list_(_PATHS)),
    ]
)
_ROW_GROUP: Final = 1000


def llama_factory(samples: Iterable[Sample], images: ImageStore, out: Path, negatives: int) -> Written:
    """ShareGPT messages with `<image>`, and the entry of dataset_info.json."""
    with Part(out / "m_beir_cot.parquet", _CHAT, rows=_ROW_GROUP) as part:
        for sample in samples:
            part.add(_chat(sample))
    entry = {
        "m_beir_cot": {
            "file_name": "m_beir_cot.parquet",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    }
    (out / "dataset_info.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    return Written(part.count, header({"default": [part.path.name]}, default="default"))


def ms_swift(samples: Iterable[Sample], images: ImageStore, out: Path, negatives: int) -> Written:
    """sft.parquet: the query and the target to write. embedding.parquet: anchor, positive and negative messages."""
    sft = Part(out / "sft.parquet", _CHAT, rows=_ROW_GROUP)
    pairs = Part(out / "embedding.parquet", _PAIR, rows=_ROW_GROUP)
    with sft, pairs:
        for sample in samples:
            sft.add(_chat(sample))
            negative_sides = [side_of(negative) for negative in sample.negatives]
            pairs.add(
                {
                    "messages": [_user_turn(sample.query)],
                    "images": _paths(sample.query),
                    "positive_messages": [[_user_turn(sample.positive)]],
                    "positive_images": [_paths(sample.positive)],
                    "negative_messages": [
                        [_user_turn(side)] for side in negative_sides
                    ],  # never null: ms-swift takes its length
                    "negative_images": [_paths(side) for side in negative_sides],
                }
            )
    return Written(sft.count, header({part.path.stem: [part.path.name] for part in (sft, pairs)}, default="sft"))


def _chat(sample: Sample) -> dict[str, Any]:
    turns = [_user_turn(sample.query), {"role": "assistant", "content": sample.target}]
    return {"messages": turns, "images": _paths(sample.query)}


def _user_turn(side: Side) -> dict[str, str]:
    return {"role": "user", "content": f"<image>{side.text}" if side.image else side.text}


def _paths(side: Side) -> list[str]:
    return [side.image] if side.image else []
