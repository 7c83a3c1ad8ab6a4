"""An adapter's whole weights are made once; merged weights are used where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from schemas.training import TrainConfig
from tests.trainer.conftest import fresh
from trainer.model.embedder import Embedder
from trainer.model.whole_weights import whole_weights


@pytest.mark.slow
def test_whole_weights_are_made_once_and_merged_ones_used_in_place(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path / "cache"))
    embedder = fresh(config).eval()
    chunk = embedder.encoder().make_chunk([embedder.encoder().encode_query("q", "Find it.", "a red cube", None)])
    with torch.no_grad():
        wanted, _ = embedder(chunk)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    embedder.save(adapter)
    loads = []

    def load() -> Embedder:
        loads.append(adapter)
        return Embedder.load(adapter, config.model)

    place = whole_weights(config, adapter, load)
    assert (whole_weights(config, adapter, load), len(loads)) == (place, 1)
    assert whole_weights(config, place, load) == place
    with torch.no_grad():
        vectors, _ = Embedder.load(place)(chunk)
    assert torch.allclose(vectors, wanted, atol=1e-5)
    shapes = Embedder.load(place, weights=False)
    assert shapes.model.device.type == "meta"
    assert torch.equal(
        shapes.encoder().make_chunk([embedder.encoder().encode_query("q", "Find it.", "a red cube", None)]).inputs["input_ids"],
        chunk.inputs["input_ids"],
    )
    base = whole_weights(config, None, lambda: fresh(config))
    assert base != place
