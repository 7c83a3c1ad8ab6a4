"""Files of an index that are damaged or refused: each is named, with a remedy that makes it again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError
from trainer.embedding.files import ids_path, load_embeddings
from trainer.embedding.vectors import normalise
from trainer.retrieval.index import IDS, METADATA, VECTORS, Index, IndexMetadata
from trainer.retrieval.small_vectors import FILE, MEAN


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """One of 40 vectors, with an approximate index and small vectors."""
    place = tmp_path / "index"
    place.mkdir()
    vectors = normalise(np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)).astype(np.float16)
    np.save(place / VECTORS, vectors)
    np.save(place / IDS, np.arange(40))
    metadata = IndexMetadata(
        run=place, variant="trace", embedder_sha256="x", mbeir=place, cache=None, pools=("p",), count=40, dim=16
    )
    (place / METADATA).write_text(metadata.model_dump_json())
    made = Index.open(place)
    made.make_approximate("HNSW8")
    made.make_small("int8")
    return made


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def zipped(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 and no more")


damages = pytest.mark.parametrize("damage", [empty, cut, zipped, Path.unlink])


@damages
@pytest.mark.parametrize("name", [VECTORS, IDS, METADATA])
def test_a_damaged_index_is_to_be_removed_and_built_again(index: Index, name: str, damage: Callable[[Path], None]) -> None:
    damage(index.directory / name)
    with pytest.raises(InputError) as caught:
        Index.open(index.directory)
    gone = name == METADATA and damage is Path.unlink
    assert caught.value.remedy.startswith("build it with" if gone else f"remove {index.directory}, then run")


@damages
@pytest.mark.parametrize(
    ("name", "remedy"), [("approximate.faiss", "--approximate HNSW8"), (FILE, "--small int8"), (MEAN, "--small int8")]
)
def test_what_was_added_to_an_index_is_made_again(index: Index, name: str, remedy: str, damage: Callable[[Path], None]) -> None:
    damage(index.directory / name)
    way = "approximate" if name == "approximate.faiss" else "small"
    queries = np.ones((1, 16), np.float32)
    with pytest.raises(InputError) as caught:
        Index.open(index.directory).search(queries, 3, **{way: True})
    assert f"{remedy}` again" in caught.value.remedy
    again = Index.open(index.directory)  # followed, as `index` does
    again.make_approximate("HNSW8") if way == "approximate" else again.make_small("int8")
    assert len(Index.open(index.directory).search(queries, 3, **{way: True}).positions) == 1


@pytest.mark.parametrize("name", [VECTORS, METADATA, "approximate.faiss", FILE, MEAN])
def test_a_refusal_of_the_system_is_no_damage(index: Index, name: str) -> None:
    path = index.directory / name
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(InputError, match="lead in a circle") as caught:
        opened = Index.open(index.directory)
        opened.search(np.ones((1, 16), np.float32), 3, small=name in (FILE, MEAN), approximate=name == "approximate.faiss")
    assert "namei -l" in caught.value.remedy


def test_a_disk_that_is_full_leaves_the_old_file(index: Index) -> None:
    before = (index.directory / FILE).read_bytes()
    (index.directory / f".{FILE}.new").symlink_to("/dev/full")
    with pytest.raises(InputError, match="the disk is full"):
        index.make_small("int8")
    assert (index.directory / FILE).read_bytes() == before


@pytest.mark.parametrize("damage", [empty, cut, zipped])
@pytest.mark.parametrize("of_ids", [False, True])
def test_damaged_embeddings_are_to_be_removed(tmp_path: Path, damage: Callable[[Path], None], *, of_ids: bool) -> None:
    path = tmp_path / "cirr_embed.npy"
    np.save(path, np.ones((40, 4), np.float16))
    np.save(ids_path(path), np.arange(40))
    damage(ids_path(path) if of_ids else path)
    with pytest.raises(InputError, match="cannot read the embeddings") as caught:
        load_embeddings(path)
    assert caught.value.remedy.startswith(f"remove {path} and run the command")


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(InputError, match="the disk or its connection fails") as caught:
        load_embeddings(tmp_path / "cirr_embed.npy")
    assert "remove" not in caught.value.remedy
