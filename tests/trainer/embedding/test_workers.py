"""Errors of the Ray actors that embed, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import CotError
from schemas.training import TrainConfig
from trainer.embedding.workers import EmbedderSpec, _Actor


def test_a_model_that_cannot_be_loaded_fails_in_a_call(config: TrainConfig, tmp_path: Path) -> None:
    actor = _Actor(EmbedderSpec(config, tmp_path / "no model"), None)  # of an actor's `__init__`, Ray keeps no exception
    with pytest.raises(CotError, match="no model"):
        actor.load()
