"""An adapter's whole weights are made once; merged weights are used where they are."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from pipeline.files.locks import LockError
from schemas.training import DataSettings, ModelSettings, TrainConfig
from tests.faults.test_locks import refused_below
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


@pytest.mark.parametrize(
    ("number", "said", "remedy"),
    [(errno.ENOLCK, "has no locks", "MBEIR_COT_CACHE"), (errno.EIO, "the disk or its connection fails", "dmesg")],
)
def test_a_cache_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, remedy: str) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path))
    refused_below(tmp_path, number, monkeypatch)
    config = TrainConfig(model=ModelSettings(base="b"), data=DataSettings(dataset="d", mbeir=tmp_path), out=tmp_path)
    with pytest.raises(LockError, match=said) as caught:
        whole_weights(config, None, pytest.fail)
    assert remedy in caught.value.remedy
