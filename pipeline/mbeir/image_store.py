"""M-BEIR's images: strictly inside the root, opened lazily, safe to decode.

An unusable image raises `ImageProblem`, whose `reason` becomes the code of a rejection.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from PIL import Image, UnidentifiedImageError

from pipeline.mbeir.image_conversion import PictureFile, as_file, is_plain, normalised
from schemas.errors import InputError
from schemas.os_errors import STARVED, explained
from schemas.record import ImageReason

T = TypeVar("T")

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The allowed decoders; Pillow has many more, which M-BEIR never uses."""

MAX_PIXELS: Final = 64_000_000
"""M-BEIR's images have a shorter side of 256 pixels; a picture a thousand times as large is a decompression bomb."""


MAX_RATIO: Final = 200
"""Largest ratio of the longer side to the shorter that the image processors of Qwen2-VL to Qwen3-VL accept."""


_REMEDIES: Final = {
    ImageReason.MISSING: "`mbeir-cot mbeir fetch DIR` extracts what is missing",
    ImageReason.OUTSIDE_ROOT: "paths are relative to the M-BEIR root and must stay inside it; of images that "
    "are kept elsewhere behind a symbolic link, name the directory with --image-root DIR (in configs: input.image_roots of a "
    "build, data.image_roots of a training)",
    ImageReason.NOT_A_FILE: "a regular file is expected",
    ImageReason.NOT_AN_IMAGE: f"one of {', '.join(FORMATS)} is expected: remove the file, then `mbeir-cot mbeir fetch DIR` "
    "extracts what is missing",
    ImageReason.TRUNCATED: "the file is damaged: remove it, then `mbeir-cot mbeir fetch DIR` extracts what is missing",
    ImageReason.TOO_MANY_PIXELS: "scale the image down: 64 million pixels are allowed",
    ImageReason.UNREADABLE: "check the permissions of the file",
    ImageReason.ASPECT_RATIO: "crop or pad the image: the image processors of Qwen's models refuse it",
}


class ImageProblem(InputError):
    """An image that cannot be used."""

    def __init__(self, reason: ImageReason, path: str, detail: str, remedy: str = "") -> None:
        """`remedy`: replaces the usual remedy of the reason."""
        super().__init__(f"image {path!r}: {detail}", remedy or _REMEDIES[reason])
        self.reason, self.path, self.detail = reason, path, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.path, self.detail, self.remedy)


class ImageStore:
    """Images by their path relative to the M-BEIR root.

    Args:
        root: the M-BEIR root. It may itself be reached through a symbolic link.
        allowed_roots: further directories that symbolic links below `root` may point into (many keep ``mbeir_images``
            on another disk). Nothing else outside the root is opened.
        max_pixels: width x height above which an image is refused before it is decoded.
        max_ratio: of the longer side to the shorter, above which an image is refused; None for any.
    """

    def __init__(
        self, root: Path, *, allowed_roots: tuple[Path, ...] = (), max_pixels: int = MAX_PIXELS, max_ratio: float | None = None
    ) -> None:
        self.root = root
        self.max_ratio = max_ratio
        self.max_pixels = max_pixels
        self._allowed_roots = allowed_roots
        self._real_roots = tuple(os.path.realpath(place) for place in (root, *allowed_roots))
        # A folder's links are resolved once; the real path that was checked is the one that is opened.
        self._real_folder = lru_cache(maxsize=65_536)(lambda folder: os.path.realpath(os.path.join(root, folder)))  # noqa: PTH118

    def resolve(self, relative: str) -> Path:
        """The real path of a regular file inside the root; ImageProblem otherwise. Reads no content.

        A name with accents has two Unicode forms (NFC and NFD), and some disks and archives change one into the other: the file
        is found under either."""
        try:
            return self._resolved(relative)
        except ImageProblem as problem:
            if problem.reason is not ImageReason.MISSING or relative.isascii():
                raise
            others = [path for name in _other_forms(relative) if (path := self._resolve_or_none(name)) is not None]
            if len(others) == 1:
                return others[0]
            if others:
                detail = "no such file; there are two whose names differ from it in the form of their accents only (NFC, NFD)"
                raise ImageProblem(ImageReason.MISSING, relative, detail) from None
            raise

    def _resolve_or_none(self, relative: str) -> Path | None:
        try:
            return self._resolved(relative)
        except ImageProblem:
            return None

    def _resolved(self, relative: str) -> Path:
        parts = relative.split("/")
        if not relative or "\0" in relative or "\\" in relative or relative.startswith("/") or ".." in parts:
            raise ImageProblem(ImageReason.OUTSIDE_ROOT, relative, "not a plain path below the M-BEIR root")
        folder, _, name = relative.rpartition("/")
        real = os.path.join(self._real_folder(folder), name)  # noqa: PTH118 (this runs millions of times)
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        if not self._is_inside(real):
            raise ImageProblem(ImageReason.OUTSIDE_ROOT, relative, "a link that leads out of the M-BEIR root")
        try:
            mode = os.stat(real).st_mode  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            raise ImageProblem(ImageReason.MISSING, relative, "no such file below the M-BEIR root") from None
        except OSError as error:
            raise _unreadable(relative, error) from error
        if not stat.S_ISREG(mode):
            raise ImageProblem(ImageReason.NOT_A_FILE, relative, "a directory, pipe or device, not a file")
        return Path(real)

    def _is_inside(self, real: str) -> bool:
        return any(real == place or real.startswith(place + os.sep) for place in self._real_roots)

    def read_bytes(self, relative: str) -> bytes:
        """The file's content, unchanged."""
        path = self.resolve(relative)
        try:
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(relative, error) from error

    def open(self, relative: str, content: bytes | None = None) -> Image.Image:
        """The picture in RGB, as teacher and student see it (`pipeline.mbeir.image_conversion`).

        `content`: the file's content, if it has already been read.
        """
        return self._decoded(relative, self.resolve(relative) if content is None else io.BytesIO(content), normalised)

    def portable(self, relative: str, content: bytes | None = None) -> PictureFile:
        """A file that any decoder reads as `open` does: the file itself if it is plain, else a PNG."""
        data = self.read_bytes(relative) if content is None else content
        return self._decoded(relative, io.BytesIO(data), lambda image: as_file(image, data))

    def is_plain(self, relative: str, data: bytes) -> bool:
        """Whether any decoder reads the content `data` of the file as `open` does. False if it cannot be opened."""
        try:
            return self._decoded(relative, io.BytesIO(data), is_plain)
        except ImageProblem:
            return False

    def is_portable(self, relative: str) -> bool:
        """Whether exactly this path exists and any decoder reads the file as `open` does. Reads the header only."""
        path = self.resolve(relative)
        return (self.root / relative).exists() and self._decoded(relative, path, is_plain)

    def _decoded(self, relative: str, source: Path | io.BytesIO, take: Callable[[Image.Image], T]) -> T:
        with _explained(relative), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                _check_shape(relative, image.size, self.max_pixels, self.max_ratio)
                return take(image)


def opened_picture(
    image: Image.Image, name: str, *, max_pixels: int = MAX_PIXELS, max_ratio: float | None = None
) -> Image.Image:
    """A copy of an opened picture in RGB, as `ImageStore.open` returns it for a file.

    `name` names it in messages. Raises ImageProblem as `ImageStore.open` does.
    """
    with _explained(name):
        _check_shape(name, image.size, max_pixels, max_ratio)
        return normalised(image)


def _check_shape(name: str, size: tuple[int, int], max_pixels: int, max_ratio: float | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageProblem(ImageReason.TOO_MANY_PIXELS, name, f"{width}x{height} pixels, more than the cap of {max_pixels:,}")
    if max_ratio is not None and max(width, height) > max_ratio * min(width, height):
        raise ImageProblem(ImageReason.ASPECT_RATIO, name, f"{width}x{height} pixels, sides in a ratio above {max_ratio:g}")


def picture_value(store: ImageStore, relative: str) -> dict[str, Any]:
    """A picture as `datasets.Image` stores it. The file's name gets the suffix of the content."""
    file = store.portable(relative)
    name = relative.rsplit("/", 1)[-1]
    plain = file.media_type != "image/png" or name.lower().endswith(".png")
    return {"bytes": file.content, "path": name if plain else f"{name.rpartition('.')[0] or name}.png"}


def _other_forms(relative: str) -> list[str]:
    forms = (unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))
    return [form for form in dict.fromkeys(forms) if form != relative]


def _unreadable(relative: str, error: OSError) -> ImageProblem | InputError:
    """The error for a file that the system cannot read: an ImageProblem, or an InputError if any other image would fail too."""
    cause, remedy = explained(error)
    if error.errno in STARVED:
        return InputError(f"image {relative!r} cannot be read: {cause}", remedy)
    return ImageProblem(ImageReason.UNREADABLE, relative, cause, remedy)


@contextmanager
def _explained(relative: str) -> Iterator[None]:
    """Turns whatever Pillow raises for a file into an ImageProblem."""
    try:
        yield
    except (ImageProblem, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageProblem(ImageReason.TOO_MANY_PIXELS, relative, str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageProblem(ImageReason.NOT_AN_IMAGE, relative, "its content is no image of a known format") from error
    except OSError as error:
        # From the system. A decoder's OSError has no number, or EINVAL if damaged data point before the file's start.
        if error.errno not in (None, errno.EINVAL):
            raise _unreadable(relative, error) from error
        raise ImageProblem(ImageReason.TRUNCATED, relative, f"cannot be decoded ({error})") from error
    except Exception as error:  # for damaged data, decoders also raise SyntaxError, ValueError, struct.error, EOFError, …
        raise ImageProblem(ImageReason.TRUNCATED, relative, f"cannot be decoded ({error})") from error
