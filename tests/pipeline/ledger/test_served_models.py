"""What servers said about the model behind a name, when its file is damaged or cannot be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.request_key import Identity
from pipeline.ledger.segment import SegmentStore
from pipeline.ledger.served_models import same_as_before
from schemas.errors import ConfigError, InputError
from schemas.hosting import Endpoint
from schemas.teacher_config import TeacherConfig


@pytest.fixture
def identity() -> Identity:
    return Identity(TeacherConfig(hosting="external", endpoints=(Endpoint(url="http://127.0.0.1:1/v1", model="m"),)))


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"told": null}', b"\xff"])
def test_a_damaged_file_is_named_and_the_remedy_works(tmp_path: Path, identity: Identity, content: bytes) -> None:
    same_as_before(str(tmp_path), "teacher", identity, ["m-1"])
    with pytest.raises(ConfigError, match="serve m as m-2"):
        same_as_before(str(tmp_path), "teacher", identity, ["m-2"])
    (path,) = tmp_path.glob("served-*.json")
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name} is damaged") as caught:
        same_as_before(str(tmp_path), "teacher", identity, ["m-1"])
    assert "remove it" in caught.value.remedy
    path.unlink()
    same_as_before(str(tmp_path), "teacher", identity, ["m-1"])
    assert path.exists()


def test_a_file_that_cannot_be_read(tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    same_as_before(str(tmp_path), "teacher", identity, ["m-1"])

    def fail(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = SegmentStore(tmp_path)
    monkeypatch.setattr("pipeline.ledger.served_models.SegmentStore", lambda _: store)
    store.filesystem = Failing(store.filesystem, fail)  # type: ignore[assignment]
    with pytest.raises(InputError, match="connection fails") as caught:
        same_as_before(str(tmp_path), "teacher", identity, ["m-1"])
    assert "remove it" not in caught.value.remedy


class Failing:
    """A file system whose files cannot be opened."""

    def __init__(self, real: Any, fail: Any) -> None:
        self.get_file_info, self.open_input_stream = real.get_file_info, fail
