from __future__ import annotations

import errno
import os
import pickle
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.errors import InputError
from schemas.record import ImageReason
from tests.pipeline.mbeir.conftest import COCO, write_image

PICTURE = f"{COCO}/COCO_1.jpg"


def reason(store: ImageStore, path: str) -> ImageReason:
    with pytest.raises(ImageProblem) as caught:
        store.open(path)
    assert repr(path) in str(caught.value)
    assert "what to do:" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    return caught.value.reason


def test_an_image_is_opened_in_rgb(mbeir: Path) -> None:
    Image.new("P", (5, 4)).save(mbeir / "mbeir_images" / "palette.png")
    store = ImageStore(mbeir)
    assert (store.open(PICTURE).mode, store.open(PICTURE).size) == ("RGB", (32, 24))
    assert store.open("mbeir_images/palette.png").mode == "RGB"
    assert store.read_bytes(PICTURE) == (mbeir / PICTURE).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../secret.jpg",
        "mbeir_images/../../secret.jpg",
        "mbeir_images/..",
        "a\0b",
        "..\\secret.jpg",
        "a\\b.jpg",
    ],
)
def test_paths_that_leave_the_root_are_refused(mbeir: Path, path: str) -> None:
    write_image(mbeir.parent / "secret.jpg")
    assert reason(ImageStore(mbeir), path) is ImageReason.OUTSIDE_ROOT


def test_links_that_leave_the_root_are_refused(mbeir: Path) -> None:
    write_image(mbeir.parent / "elsewhere" / "x.jpg")
    (mbeir / "mbeir_images" / "file.jpg").symlink_to(mbeir.parent / "elsewhere" / "x.jpg")
    (mbeir / "mbeir_images" / "folder").symlink_to(mbeir.parent / "elsewhere")
    (mbeir / "mbeir_images" / "inside.jpg").symlink_to(mbeir / PICTURE)
    store = ImageStore(mbeir)
    assert reason(store, "mbeir_images/file.jpg") is ImageReason.OUTSIDE_ROOT
    assert reason(store, "mbeir_images/folder/x.jpg") is ImageReason.OUTSIDE_ROOT
    assert store.open("mbeir_images/inside.jpg").size == (32, 24)
    allowed = ImageStore(mbeir, allowed_roots=(mbeir.parent / "elsewhere",))
    assert allowed.open("mbeir_images/folder/x.jpg").size == (32, 24)


def test_a_root_may_be_a_link(mbeir: Path) -> None:
    (mbeir.parent / "link").symlink_to(mbeir)
    assert ImageStore(mbeir.parent / "link").open(PICTURE).size == (32, 24)


def test_missing_files_directories_and_pipes(mbeir: Path) -> None:
    os.mkfifo(mbeir / "mbeir_images" / "pipe.jpg")
    store = ImageStore(mbeir)
    assert reason(store, "mbeir_images/none.jpg") is ImageReason.MISSING
    assert reason(store, f"{PICTURE}/x.jpg") is ImageReason.MISSING
    assert reason(store, "mbeir_images") is ImageReason.NOT_A_FILE
    assert reason(store, "mbeir_images/pipe.jpg") is ImageReason.NOT_A_FILE


def test_a_link_to_itself_is_a_problem_and_not_a_hang(mbeir: Path) -> None:
    (mbeir / "mbeir_images" / "loop.jpg").symlink_to("loop.jpg")
    assert reason(ImageStore(mbeir), "mbeir_images/loop.jpg") in (ImageReason.UNREADABLE, ImageReason.MISSING)


def test_a_name_is_found_in_either_unicode_form(mbeir: Path) -> None:
    composed, decomposed = "Z\u00fcrich.jpg", "Zu\u0308rich.jpg"
    folder = mbeir / "mbeir_images"
    store = ImageStore(mbeir)
    write_image(folder / decomposed)
    for name in (composed, decomposed):
        assert store.resolve(f"mbeir_images/{name}").name == decomposed
        assert store.open(f"mbeir_images/{name}").size == (32, 24)
    write_image(folder / composed, "blue")
    assert store.resolve(f"mbeir_images/{composed}").name == composed  # if both exist, each gives its own
    assert store.resolve(f"mbeir_images/{decomposed}").name == decomposed
    mixed = "\u00e9 e\u0301.jpg"
    assert reason(store, f"mbeir_images/{mixed}") is ImageReason.MISSING
    for form in ("\u00e9 \u00e9.jpg", "e\u0301 e\u0301.jpg"):
        write_image(folder / form)
    with pytest.raises(ImageProblem, match="there are two whose names differ"):
        store.resolve(f"mbeir_images/{mixed}")


def test_damaged_files(mbeir: Path) -> None:
    folder = mbeir / "mbeir_images"
    Image.effect_noise((200, 200), 50).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("this is no image")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(folder / "icon.jpg", format="TIFF")  # a decoder that is not allowed
    store = ImageStore(mbeir)
    assert reason(store, "mbeir_images/half.jpg") is ImageReason.TRUNCATED
    assert reason(store, "mbeir_images/text.jpg") is ImageReason.NOT_AN_IMAGE
    assert reason(store, "mbeir_images/empty.jpg") is ImageReason.NOT_AN_IMAGE
    assert reason(store, "mbeir_images/icon.jpg") is ImageReason.NOT_AN_IMAGE


def png_header(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 12_000, 100_000])
def test_bombs_are_refused_before_they_are_decoded(mbeir: Path, side: int) -> None:
    (mbeir / "mbeir_images" / "bomb.png").write_bytes(png_header(side))
    assert reason(ImageStore(mbeir), "mbeir_images/bomb.png") is ImageReason.TOO_MANY_PIXELS


def test_the_pixel_limit_is_a_setting(mbeir: Path) -> None:
    assert reason(ImageStore(mbeir, max_pixels=32 * 24 - 1), PICTURE) is ImageReason.TOO_MANY_PIXELS
    assert ImageStore(mbeir, max_pixels=32 * 24).open(PICTURE).size == (32, 24)


@pytest.mark.parametrize("refused", ["stat", "open"])
@pytest.mark.parametrize(
    ("number", "said", "of_the_image"),
    [
        (errno.EMFILE, "too many open files", False),
        (errno.ENFILE, "too many open files", False),
        (errno.ENOMEM, "no memory", False),
        (errno.EIO, "the disk or its connection fails", True),
        (errno.ESTALE, "the network file system has lost the file", True),
        (errno.EACCES, "permission is denied", True),
    ],
)
def test_the_error_number_decides_the_problem(
    mbeir: Path, monkeypatch: pytest.MonkeyPatch, refused: str, number: int, said: str, *, of_the_image: bool
) -> None:
    """It is never a damaged file. An error that would affect every image is not this image's problem: it stops the work."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    store = ImageStore(mbeir)
    store.resolve(PICTURE)
    for use in (store.open, store.read_bytes):
        with monkeypatch.context() as patch:
            if refused == "stat":
                patch.setattr("pipeline.mbeir.image_store.os.stat", fails)
            else:
                patch.setattr("builtins.open", fails)  # used by Pillow
                patch.setattr("io.open", fails)  # used by pathlib
            with pytest.raises(InputError, match=said) as caught:
                use(PICTURE)
        found = caught.value.reason if isinstance(caught.value, ImageProblem) else None
        assert found == (ImageReason.UNREADABLE if of_the_image else None)
        assert caught.value.remedy
        assert pickle.loads(pickle.dumps(caught.value)).remedy == caught.value.remedy
