"""Exports, checked by real vLLM servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import ConfigError
from schemas.training import AdaptiveSettings, TrainConfig
from tests.trainer.conftest import fresh, mixed_routes, source_of
from trainer.data.encoding import EncodedSequence
from trainer.embedding.adaptive import AdaptiveEmbedder
from trainer.model.embedder import Embedder
from trainer.release.merge import MergeError, merge

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
SETTINGS = AdaptiveSettings(max_new_tokens=8)


def some_rows(config: TrainConfig, embedder: Embedder) -> tuple[list[EncodedSequence], list[EncodedSequence]]:
    source = source_of(config, embedder)
    items = [source.records.item(index) for index in range(0, len(source.records), 7)]
    candidates = source.candidates.fetch([item.positives[0] for item in items[:4]])
    return [source.encode_prompt(item) for item in items], [source.encode_candidate(one) for one in candidates]


def test_an_export_equals_the_adapter(config: TrainConfig, tmp_path: Path) -> None:
    embedder = fresh(config)
    queries, candidates = some_rows(config, embedder)
    mixed_routes(embedder, queries)
    assert {one.reasoned for one in AdaptiveEmbedder(embedder, SETTINGS).embed(queries, route="learned")} == {True, False}
    with torch.no_grad():
        before, _ = embedder.eval()(embedder.encoder().make_chunk(queries))
    report = merge(embedder, queries, candidates, tmp_path / "out", settings=SETTINGS)
    assert report.least_cosine >= 0.999
    assert report.routes_equal == report.routes == len(queries)
    assert report.samples > len(queries) + len(candidates)  # queries with their traces are checked too
    assert json.loads((tmp_path / "out" / "merge_report.json").read_text())["routes"] == len(queries)
    again = Embedder.load(tmp_path / "out")
    with torch.no_grad():
        after, _ = again(again.encoder().make_chunk(queries))
    assert float((before * after).sum(1).min()) > 0.9999
    with pytest.raises(ConfigError, match="exists"):
        merge(embedder, queries, candidates, tmp_path / "out", settings=SETTINGS)


def change(directory: Path, ending: str, where: int | slice) -> None:
    """Sets a part of the exported weights to zero."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(ending))
    weights[name][where] = 0
    save_file(weights, path, metadata={"format": "pt"})


def test_an_export_with_other_embeddings_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    embedder = fresh(config)
    queries, candidates = some_rows(config, embedder)

    def blind(directory: Path) -> None:
        change(directory, "visual.merger.mlp.2.weight", slice(None))

    with pytest.raises(MergeError, match=r"not what was trained: least cosine -?0"):
        merge(embedder, queries, candidates, tmp_path / "out", settings=SETTINGS, before_check=blind)
    assert list(tmp_path.iterdir()) == []


def test_an_export_with_other_routes_is_refused(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding token's row affects routes but no embedding, so the first half of the check would accept it."""
    embedder = fresh(config)
    queries, candidates = some_rows(config, embedder)
    mixed_routes(embedder, queries)
    monkeypatch.setattr("trainer.release.merge._compare_embeddings", lambda *_: [1.0])  # saves a server; other tests cover it

    def aimless(directory: Path) -> None:
        change(directory, "embed_tokens.weight", embedder.emb_id)

    with pytest.raises(MergeError, match=r"not what was trained: \d+ of \d+ routes equal"):
        merge(embedder, queries, candidates, tmp_path / "out", settings=SETTINGS, before_check=aimless)
    assert list(tmp_path.iterdir()) == []
