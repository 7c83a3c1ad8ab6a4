"""Exports that name pictures by path: what a plain decoder shows at that path is what teacher and student saw."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.export.export_dataset import export_dataset
from pipeline.export.samples import SkipReason
from pipeline.mbeir.image_store import ImageStore
from schemas.errors import InputError

pytestmark = [pytest.mark.slow]
RANDOM = np.random.default_rng(7)


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8))


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(20, 30, 3).save(path, "JPEG", exif=exif)


def transparent(path: Path) -> None:
    noise(20, 30, 4).save(path, "PNG")


def deep(path: Path) -> None:
    Image.fromarray(RANDOM.integers(0, 65536, (20, 30), np.uint16)).save(path, "PNG")


def of_two_frames(path: Path) -> None:
    noise(20, 30, 3).save(path, "MPO", save_all=True, append_images=[noise(20, 30, 3)])


def damaged(path: Path) -> None:
    path.write_bytes(b"no picture")


MAKE: tuple[Callable[[Path], None], ...] = (turned, transparent, deep, of_two_frames)
COMPOSED = "mbeir_images/cirr_images/caf\u00e9.jpg"


def llama_factory(out: Path) -> Iterator[str]:
    for row in pq.read_table(out / "m_beir_cot.parquet").to_pylist():
        yield from row["images"]


def ms_swift(out: Path) -> Iterator[str]:
    for row in pq.read_table(out / "sft.parquet").to_pylist():
        yield from row["images"]


def vlm2vec(out: Path) -> Iterator[str]:
    for file in sorted(out.rglob("*.parquet")):
        yield from (row["qry_image_path"] for row in pq.read_table(file).to_pylist() if row["qry_image_path"])


def lamra(out: Path) -> Iterator[str]:
    for line in (out / "mbeir_cot_train.jsonl").read_text(encoding="utf-8").splitlines():
        if path := json.loads(line)["query_img_path"]:
            yield path


def pixels(path: Path) -> bytes:
    """As a project opens it, which knows nothing of turning and white."""
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def prepared(pictured_build: Path, small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """(dataset, M-BEIR root, the query images in order); several of the images are of the awkward kinds."""
    place = tmp_path_factory.mktemp("awkward")
    root, dataset = place / "M-BEIR", place / "dataset"
    shutil.copytree(small_world, root)
    shutil.copytree(pictured_build / "dataset", dataset)
    (shard,) = (dataset / "data").glob("*.parquet")
    table = pq.read_table(shard)
    rows = table.to_pylist()
    shown = list(dict.fromkeys(row["query_image"] for row in rows if row["query_image"]))
    for path, make in zip(shown, MAKE, strict=False):
        make(root / path)
    damaged(root / shown[4])
    renamed = root / unicodedata.normalize("NFD", COMPOSED)
    renamed.parent.mkdir(parents=True, exist_ok=True)
    (root / shown[5]).rename(renamed)
    for row in rows:
        row["query_image"] = COMPOSED if row["query_image"] == shown[5] else row["query_image"]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    return dataset, root, [row["query_image"] for row in rows if row["query_image"]]


@pytest.mark.parametrize(
    ("name", "read"), [("llama-factory", llama_factory), ("ms-swift", ms_swift), ("vlm2vec", vlm2vec), ("lamra", lamra)]
)
def test_what_is_named_shows_what_the_teacher_saw(
    prepared: tuple[Path, Path, list[str]], tmp_path: Path, name: str, read: Callable[[Path], Iterator[str]]
) -> None:
    dataset, root, originals = prepared
    out = tmp_path / "out"
    done = export_dataset(BuiltDataset.open(dataset), name, out, mbeir=root)
    named = list(read(out))
    broken = sum((root / path).is_file() and (root / path).read_bytes() == b"no picture" for path in originals)
    assert done.skipped == {SkipReason.UNREADABLE: broken}
    assert broken > 0
    assert done.records + broken == BuiltDataset.open(dataset).manifest.records
    store = ImageStore(root)
    whole = [path for path in originals if not (root / path).is_file() or (root / path).read_bytes() != b"no picture"]
    assert sorted(path for path in named if ".." not in path) == sorted(path for path in whole if path in named)
    if name != "vlm2vec":  # in the dataset's order
        for path, original in zip(named, whole, strict=True):
            assert pixels(root / path) == store.open(original).tobytes(), original
    beside = {path for path in named if path.startswith("..")}
    assert len(beside) == len(MAKE) + 1
    assert done.pictures == len(list((out / "pictures").rglob("*.*"))) >= len(beside)
    assert all(pixels(root / path) for path in beside)
    # ms-swift resolves the dots by text, so it needs the real path; the others leave it to the system, which also takes a link
    assert all(Path(os.path.abspath(os.path.join(os.path.realpath(root), path))).is_file() for path in beside)  # noqa: PTH100, PTH118
    (tmp_path / "link").symlink_to(root)
    assert all((tmp_path / "link" / path).is_file() for path in beside)
    assert "`readlink -f`" in (out / "README.md").read_text(encoding="utf-8")
    assert f"{done.pictures} pictures are in out/pictures" in (out / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["sentence-transformers", "tevatron"])
def test_a_damaged_picture_does_not_end_an_export_that_holds_pictures(
    prepared: tuple[Path, Path, list[str]], tmp_path: Path, name: str
) -> None:
    dataset, root, originals = prepared
    broken = sum((root / path).is_file() and (root / path).read_bytes() == b"no picture" for path in originals)
    opened = BuiltDataset.open(dataset)
    done = export_dataset(opened, name, tmp_path / "out", mbeir=root)
    left_out = done.skipped[SkipReason.UNREADABLE]
    assert left_out >= broken > 0
    assert done.records + left_out == opened.manifest.records
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"{left_out:,} records are left out because {SkipReason.UNREADABLE}" in readme


@pytest.mark.parametrize("name", ["sentence-transformers", "tevatron", "llama-factory", "ms-swift", "vlm2vec", "lamra"])
def test_a_disk_that_is_not_mounted_ends_every_export(
    prepared: tuple[Path, Path, list[str]], tmp_path: Path, name: str
) -> None:
    dataset, root, _ = prepared
    opened = BuiltDataset.open(dataset)
    bare = tmp_path / "M-BEIR"
    (bare / "mbeir_images").mkdir(parents=True)
    for part in ("query", "cand_pool", "instructions"):
        (bare / part).symlink_to(root / part)
    with pytest.raises(InputError, match="cannot be opened; nothing was written") as caught:
        export_dataset(opened, name, tmp_path / "none", mbeir=bare)
    assert "mounted?" in caught.value.remedy
    assert not list(tmp_path.glob("*none*"))
