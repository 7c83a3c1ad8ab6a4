from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from pipeline.teacher.request_images import ImageEncoder, ImageMode
from schemas.record import ImageReason


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    Image.effect_noise((40, 20), 60).save(tmp_path / "small.png")
    Image.effect_noise((400, 200), 60).convert("RGB").save(tmp_path / "large.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:3000])
    return ImageStore(tmp_path)


def decoded(url: str) -> Image.Image:
    head, data = url.split(",", 1)
    assert head.endswith(";base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_images_are_sent_unchanged(store: ImageStore, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "small.png").read_bytes()).hexdigest()
    by_path = ImageEncoder(store, ImageMode.PATH, max_pixels=1000).encode("small.png")
    assert by_path.url == (tmp_path / "small.png").resolve().as_uri()
    within = ImageEncoder(store, ImageMode.DATA_URL, max_pixels=1000).encode("small.png")
    assert within.url.startswith("data:image/png;base64,")
    assert base64.b64decode(within.url.split(",")[1]) == (tmp_path / "small.png").read_bytes()
    assert by_path.sha256 == within.sha256 == digest


@pytest.mark.parametrize("mode", ImageMode)
def test_large_images_are_reduced_to_the_budget(store: ImageStore, mode: ImageMode) -> None:
    image = decoded(ImageEncoder(store, mode, max_pixels=5000).encode("large.jpg").url)
    assert image.width * image.height <= 5000
    assert image.size == (100, 50)


@pytest.mark.parametrize("mode", ImageMode)
@pytest.mark.parametrize(
    ("name", "reason"),
    [("broken.jpg", ImageReason.TRUNCATED), ("none.jpg", ImageReason.MISSING), ("../x", ImageReason.OUTSIDE_ROOT)],
)
def test_unusable_images_are_found_before_they_are_sent(
    store: ImageStore, mode: ImageMode, name: str, reason: ImageReason
) -> None:
    with pytest.raises(ImageProblem) as caught:
        ImageEncoder(store, mode, max_pixels=5000).encode(name)
    assert caught.value.reason is reason


def test_the_last_images_are_remembered(store: ImageStore, tmp_path: Path) -> None:
    encoder = ImageEncoder(store, ImageMode.DATA_URL, max_pixels=5000, keep=1)
    first = encoder.encode("small.png")
    (tmp_path / "small.png").unlink()
    assert encoder.encode("small.png") is first
    encoder.encode("large.jpg")
    with pytest.raises(ImageProblem):
        encoder.encode("small.png")


@pytest.mark.parametrize("mode", ImageMode)
@pytest.mark.parametrize("name", ["small.png", "large.jpg", "clear.png"])
def test_an_image_file_is_read_once(
    store: ImageStore, tmp_path: Path, mode: ImageMode, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    reads: list[Path] = []
    opened, read_bytes = Image.open, Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    monkeypatch.setattr(
        Image,
        "open",
        lambda source, *rest, **given: (isinstance(source, Path) and reads.append(source)) or opened(source, *rest, **given),
    )
    ImageEncoder(store, mode, max_pixels=5000).encode(name)
    assert len(reads) == 1
