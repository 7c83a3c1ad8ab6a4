"""One loader decides the pixels of an image, the same by path, in a request, in a dataset and on a page."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.export.writer_result import picture
from pipeline.mbeir.image_store import ImageStore, picture_value
from pipeline.mbeir.thumbnails import Thumbnails
from pipeline.teacher.request_images import ImageEncoder, ImageMode
from tests.support.pictures import assert_seen, write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def pictures(root: Path) -> dict[str, tuple[np.ndarray, int, bool]]:
    return write_pictures(root)


def as_the_server_does(url: str, root: Path) -> Image.Image:
    """Loads an image with vLLM's own loader."""
    from vllm.multimodal.media.image import ImageMediaIO

    loader = ImageMediaIO()
    if url.startswith("data:"):
        head, data = url.split(",", 1)
        return loader.load_base64(head.removeprefix("data:").removesuffix(";base64"), data).media
    assert url.startswith(root.resolve().as_uri())
    return loader.load_file(Path(url.removeprefix("file://"))).media


def naive(data: bytes) -> Image.Image:
    """Loads an image as most training code does."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_the_student_sees_the_expected_pixels(root: Path, pictures: dict[str, tuple[np.ndarray, int, bool]]) -> None:
    for name, (shown, off, _) in pictures.items():
        assert_seen(name, ImageStore(root).open(name), shown, off)


@pytest.mark.slow  # vLLM takes its time to be imported
@pytest.mark.parametrize("mode", ImageMode)
def test_the_teachers_server_sees_the_expected_pixels(
    root: Path, pictures: dict[str, tuple[np.ndarray, int, bool]], mode: ImageMode
) -> None:
    store = ImageStore(root)
    encoder = ImageEncoder(store, mode, max_pixels=10_000)
    for name, (_, _, plain) in pictures.items():
        encoded = encoder.encode(name)
        assert encoded.url.startswith("file:") == (plain and mode is ImageMode.PATH), name
        # pixel for pixel what the student gets
        assert_seen(name, as_the_server_does(encoded.url, root), np.asarray(store.open(name)), 0)


@pytest.mark.slow  # vLLM takes its time to be imported
@pytest.mark.parametrize("mode", ImageMode)
def test_an_image_above_the_pixel_budget(
    root: Path, pictures: dict[str, tuple[np.ndarray, int, bool]], mode: ImageMode
) -> None:
    store = ImageStore(root)
    encoder = ImageEncoder(store, mode, max_pixels=24 * 16 // 4)
    for name in pictures:
        buffer = io.BytesIO()
        store.open(name).resize((12, 8), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        assert_seen(name, as_the_server_does(encoder.encode(name).url, root), np.asarray(naive(buffer.getvalue())), 2)


def test_datasets_and_exports_contain_the_expected_pixels(
    root: Path, pictures: dict[str, tuple[np.ndarray, int, bool]]
) -> None:
    from datasets import Features
    from datasets import Image as ImageFeature

    store, feature = ImageStore(root), ImageFeature()
    for name, (_, _, plain) in pictures.items():
        value, wanted = picture_value(store, name), np.asarray(store.open(name))
        assert (value["bytes"] == (root / name).read_bytes()) == plain, name
        assert picture(store, name)[0] == value
        assert_seen(name, naive(value["bytes"]), wanted, 0)
        assert_seen(name, feature.decode_example(value).convert("RGB"), wanted, 0)
        assert value["path"].endswith(".png") or plain, name
    assert Features({"image": feature}).arrow_schema.field("image").type == pa.struct(
        {"bytes": pa.binary(), "path": pa.string()}
    )


def test_a_page_shows_the_expected_pixels(root: Path, pictures: dict[str, tuple[np.ndarray, int, bool]]) -> None:
    store = ImageStore(root)
    shown = Thumbnails(store)
    for name in pictures:
        url = shown.found[shown.add(name)]
        wanted = np.asarray(store.open(name)).astype(int)
        assert np.abs(np.asarray(naive(base64.b64decode(url.split(",")[1]))).astype(int) - wanted).mean() < 25, name


def test_a_converted_image_has_another_digest_than_its_file(
    root: Path, pictures: dict[str, tuple[np.ndarray, int, bool]]
) -> None:
    """Otherwise old answers, given when the server decoded the file itself, would be used for the converted image."""
    for mode in ImageMode:
        for name, (_, _, plain) in pictures.items():
            digest = ImageEncoder(ImageStore(root), mode, max_pixels=10_000).digest(name)
            assert (digest == hashlib.sha256((root / name).read_bytes()).hexdigest()) == plain, name
            assert digest == ImageEncoder(ImageStore(root), mode, max_pixels=10_000).encode(name).sha256


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_make_an_image_unreadable(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")
    assert ImageStore(tmp_path).open("x.jpg").size == (8, 8)
