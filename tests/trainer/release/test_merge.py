"""Exports, checked by real vLLM servers. Starting one takes half a minute, so all tests share the two of the first export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pipeline.serving.server import ManagedServer
from schemas.errors import ConfigError
from schemas.hosting import ServerConfig
from schemas.training import AdaptiveSettings, TrainConfig
from tests.trainer.conftest import fresh, mixed_routes, source_of
from trainer.data.encoding import EncodedSequence
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder
from trainer.release.merge import Agreement, MergeError, merge

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
SETTINGS = AdaptiveSettings(max_new_tokens=8)


def some_rows(config: TrainConfig, embedder: Embedder) -> tuple[list[EncodedSequence], list[EncodedSequence]]:
    source = source_of(config, embedder)
    items = [source.records.item(index) for index in range(0, len(source.records), 7)]
    candidates = source.candidates.fetch([item.positives[0] for item in items[:4]])
    return [source.encode_prompt(item) for item in items], [source.encode_candidate(one) for one in candidates]


class Exported(NamedTuple):
    embedder: Embedder
    queries: list[EncodedSequence]
    candidates: list[EncodedSequence]
    out: Path
    report: Agreement


def mixed(config: TrainConfig) -> tuple[Embedder, list[EncodedSequence], list[EncodedSequence]]:
    """An embedder whose queries take both routes, the same at each call."""
    embedder = fresh(config)
    queries, candidates = some_rows(config, embedder)
    mixed_routes(embedder, queries)
    return embedder, queries, candidates


@pytest.fixture(scope="module")
def exported(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """A finished export. Its two servers, for embeddings and for routes, then answer to each further `merge`."""
    servers: dict[str, ManagedServer] = {}

    @contextlib.contextmanager
    def shared(server: ServerConfig) -> Iterator[ManagedServer]:
        runner = server.extra_args[server.extra_args.index("--runner") + 1]
        if runner not in servers:
            servers[runner] = ManagedServer(server)
            servers[runner].start()
        yield servers[runner]

    out = tmp_path_factory.mktemp("export") / "out"
    embedder, queries, candidates = mixed(config)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainer.release.merge.ManagedServer", shared)
            report = merge(embedder, queries, candidates, out, settings=SETTINGS)
            assert servers.keys() == {"pooling", "generate"}
            yield Exported(embedder, queries, candidates, out, report)
    finally:
        for server in servers.values():
            server.stop()


def test_an_export_equals_the_adapter(exported: Exported) -> None:
    embedder, queries, candidates, out, report = exported
    assert {one.reasoned for one in AdaptiveEmbedder(embedder, SETTINGS).embed(queries, route="learned")} == {True, False}
    assert report.least_cosine >= 0.999
    assert report.routes_equal == report.routes == len(queries)
    assert report.samples > len(queries) + len(candidates)  # queries with their traces are checked too
    assert json.loads((out / "merge_report.json").read_text())["routes"] == len(queries)
    again = Embedder.load(out)
    with torch.no_grad():
        before, _ = embedder.eval()(embedder.encoder().make_chunk(queries))
        after, _ = again(again.encoder().make_chunk(queries))
    assert float((before * after).sum(1).min()) > 0.9999
    with pytest.raises(ConfigError, match="exists"):
        merge(embedder, queries, candidates, out, settings=SETTINGS)


def zero(embedder: Embedder, part: str) -> None:
    """Sets a part of the embedder to zero, of which the servers then hold something else."""
    with torch.no_grad():
        next(weight for name, weight in embedder.named_parameters() if part in name).zero_()


@pytest.mark.usefixtures("exported")
def test_an_export_with_other_embeddings_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    embedder, queries, candidates = mixed(config)
    zero(embedder, "visual.merger.mlp.2.weight")
    with pytest.raises(MergeError, match=r"not what was trained: least cosine -?0"):
        merge(embedder, queries, candidates, tmp_path / "out", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exported")
def test_an_export_with_other_routes_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    """The embedding token's row affects routes but no embedding, so the first half of the check accepts it."""
    embedder, queries, candidates = mixed(config)
    zero(embedder, "trainable_tokens_delta")
    with pytest.raises(MergeError, match=r"not what was trained: \d+ of \d+ routes equal"):
        merge(embedder, queries, candidates, tmp_path / "out", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []
