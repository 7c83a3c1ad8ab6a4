"""Part of `make rehearse`: the shipped 7B recipe in bfloat16 on the published layout with the real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from bench.real_vocabulary import write_tokenizer
from bench.rehearse.commands import StageFailed
from bench.rehearse.layouts import Layout, write_checkpoint
from bench.rehearse.stages import LAYOUTS, Rehearsal, evaluate, train_and_resume, write_data
from schemas.errors import InputError

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    directory = tmp_path_factory.mktemp("rehearsal")
    found = Rehearsal(directory, "cpu", vocabulary=directory / "vocabulary")
    try:
        write_tokenizer(found.vocabulary)
    except InputError as error:
        pytest.skip(str(error))
    return found


@pytest.mark.parametrize(
    ("name", "tied", "patch", "named"),
    [
        ("3b", True, 14, "model.layers.0.mlp.up_proj.weight"),
        ("qwen3", False, 16, "model.language_model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_layout_loads_like_the_published_one(rehearsal: Rehearsal, name: str, tied: bool, patch: int, named: str) -> None:
    layout: Layout = LAYOUTS[name]
    directory = write_checkpoint(layout, rehearsal.model(name), heads=1, vocabulary=rehearsal.vocabulary)
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert named in file.keys()  # noqa: SIM118 (it is no mapping)
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118
    info: dict[str, Any]
    model, info = AutoModelForImageTextToText.from_pretrained(directory, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings is tied
    processor = AutoProcessor.from_pretrained(directory)
    assert processor.image_processor.patch_size == patch
    assert processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") == model.config.image_token_id


def test_the_shipped_7b_recipe_trains_resumes_and_is_scored(rehearsal: Rehearsal) -> None:
    write_checkpoint(LAYOUTS["7b"], rehearsal.model("7b"), heads=1, vocabulary=rehearsal.vocabulary)
    write_data(rehearsal)
    assert train_and_resume("7b", steps=3, killed=2, checkpoint=1)(rehearsal).startswith("3 steps")
    settings = json.loads((rehearsal.out("7b") / "train.json").read_text())
    recipe = settings["model"]
    assert recipe["dtype"] == "bfloat16"
    assert recipe["autocast"]
    assert recipe["train_projector"]
    assert recipe["gradient_checkpointing"] is True
    evaluate("7b")(rehearsal)


def test_a_stage_that_fails_shows_its_command_and_the_end_of_its_output(rehearsal: Rehearsal, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"mbeir-cot eval .*run-7b(?s:.*)ended with 2(?s:.*)cannot read the config"):
        evaluate("7b")(Rehearsal(tmp_path, "cpu", vocabulary=rehearsal.vocabulary))
