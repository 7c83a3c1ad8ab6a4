"""The shipped run, `pocket/models`, is complete, labelled, loads without a training and embeds with traces that are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pocket.evaluation.build_quality import is_right
from pocket.world.ground_truth import Truth
from schemas.training import TrainConfig
from trainer import TraceEmbedder

MODELS = Path(__file__).parents[2] / "pocket" / "models"
LIMIT = 12 << 20


@pytest.mark.parametrize("variant", ["trace", "direct"])
def test_it_is_small_complete_and_labelled(variant: str) -> None:
    directory = MODELS / variant / "model"
    names = {path.name for path in directory.iterdir()}
    assert {"README.md", "adapter_model.safetensors", "adapter_config.json", "embedder.json", "finished.json"} <= names
    assert sum(path.stat().st_size for path in directory.iterdir()) <= LIMIT
    assert (directory / "README.md").read_text().split("---")[2].strip().startswith("**SYNTHETIC")


def test_its_settings_are_valid_and_name_no_place_of_a_machine() -> None:
    text = (MODELS / "train.json").read_text()
    settings = TrainConfig.model_validate_json(text)
    assert settings.variants == ("trace", "direct")
    for path in (settings.data.mbeir, settings.out, settings.data.dataset, settings.model.base):
        assert not Path(str(path)).is_absolute()
    for variant in settings.variants:
        assert json.loads((MODELS / variant / "run.json").read_text())["steps"] == settings.optimiser.max_steps


@pytest.mark.slow
def test_its_own_traces_and_routes_are_mostly_right(world: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """On queries of another world of the same encyclopedia. docs/results.md has 99% of the routes and 75% of the traces right."""
    monkeypatch.chdir(MODELS.parents[1])
    embedder = TraceEmbedder.load(MODELS)
    rows = {
        row["qid"]: row
        for line in (world / "mbeir/query/test/mbeir_webqa_task1_test.jsonl").read_text().splitlines()
        if (row := json.loads(line))
    }
    asked = [one for one in truth.queries if one.split == "test" and one.dataset_task == "webqa_task1"]
    asked = [one for one in asked if one.unseen == ""][:30]
    found = embedder.embed_queries(
        [rows[one.qid]["query_txt"] for one in asked], instruction="Find the passage that answers the question."
    )
    assert np.mean([one.reasoned == known.needs_reasoning for one, known in zip(found, asked, strict=True)]) >= 0.85
    thought = [(one, known) for one, known in zip(found, asked, strict=True) if one.reasoned]
    assert thought
    assert np.mean([is_right(one.trace.strip().splitlines()[-1], known) for one, known in thought]) >= 0.5
