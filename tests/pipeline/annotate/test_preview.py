"""Annotations without a build, with the config's servers for teacher and verifier."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.oracle import Oracle
from pipeline import annotate_queries
from pipeline.config import load_config
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from pipeline.serving.hosted import hosted
from pipeline.serving.registry import registered
from pipeline.serving.teacher_servers import server_config
from schemas.config import BuildConfig
from schemas.errors import ConfigError
from schemas.hosting import Endpoint
from schemas.mbeir import DatasetTask


@pytest.fixture
def verifier(tmp_path: Path) -> Iterator[Oracle]:
    with Oracle(tmp_path / "verifier.log", bodies=tmp_path / "verifier") as server:
        yield server


def test_a_managed_verifier_is_asked_instead_of_the_teacher(
    small_world: Path, tmp_path: Path, oracle: Oracle, verifier: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path / "servers"))
    path = oracle.config(tmp_path, small_world, route__policy="by-modality")
    settings = yaml.safe_load(path.read_text())
    managed = {
        "hosting": "managed",
        "reuse": True,
        "server": {"model": "some/verifier"},
        "prompts": "pocket",
        "images": "data_url",
    }
    path.write_text(yaml.safe_dump(settings | {"verifier": managed}))
    config = load_config(path, BuildConfig, ())
    assert config.verifier is not None
    server = server_config(config.verifier, config.mbeir)
    assert server is not None
    layout = Layout.open(small_world)
    queries = [query for _, query in read_queries(layout.queries("train", DatasetTask("cirr", 7)))][3:5]
    with registered(server, Endpoint(url=verifier.url, model="oracle"), os.getpid()):
        found = annotate_queries(config, queries)
    assert [one.query for one in found] == queries
    verified = sum(attempt.verify_answer is not None for one in found for attempt in one.attempts)
    assert verified == sum(verifier.answered().values()) > 0
    assert sum(oracle.answered().values()) == sum(one.asked for one in found) - verified
    assert not (tmp_path / "out").exists()


def test_a_limit_or_given_queries(small_world: Path, tmp_path: Path, oracle: Oracle) -> None:
    config = load_config(oracle.config(tmp_path, small_world), BuildConfig, ())
    assert len(annotate_queries(config, limit=3)) == 3
    assert annotate_queries(config, []) == []
    with pytest.raises(ConfigError, match="queries or a limit"):
        annotate_queries(config)
    assert json.loads(annotate_queries(config, limit=1)[0].query.model_dump_json())["qid"]


def test_a_server_that_is_reused_is_named(
    small_world: Path, tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path / "servers"))
    path = oracle.config(tmp_path, small_world)
    managed = {
        "hosting": "managed",
        "reuse": True,
        "server": {"model": "some/teacher"},
        "prompts": "pocket",
        "images": "data_url",
    }
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"teacher": managed}), encoding="utf-8")
    config = load_config(path, BuildConfig, ())
    server = server_config(config.teacher, config.mbeir)
    assert server is not None
    heard: list[str] = []
    with (
        registered(server, Endpoint(url=oracle.url, model="oracle"), os.getpid()),
        hosted(config, tell=heard.append) as endpoints,
    ):
        assert [one.url for one in endpoints] == [oracle.url]
    assert heard == [f"using the running server at {oracle.url}"]
