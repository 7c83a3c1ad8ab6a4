"""Images in requests: by path if the server may read the file, otherwise embedded, within a pixel budget."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import OrderedDict
from enum import StrEnum
from typing import Final, NamedTuple, Self

from PIL import Image

from pipeline.mbeir.image_store import ImageStore
from schemas.teacher_config import TeacherConfig

_SEEN: Final = b"upright, on white, 8 bits"
"""Added to the digest of a file that is not sent unchanged: answers to the unchanged file must not be reused for it."""
_QUALITY: Final = 95
_PATHS_KEPT: Final = 20_000
_IMAGES_KEPT: Final = 256
"""Encoded images within requests are large, paths are not."""


class ImageMode(StrEnum):
    PATH = "path"
    """Client and server share a file system, and the server may read the root (`media_root`)."""
    DATA_URL = "data_url"


class EncodedImage(NamedTuple):
    """`sha256` is the file's digest (`ImageEncoder.digest`), which a request's fingerprint covers instead of the URL."""

    url: str
    sha256: str


class ImageEncoder:
    """Encodes images of one store, and caches the last `keep` of them.

    `max_pixels`: larger images are reduced here, so that every server sees the same pixels. A reduced image is embedded in the
    request even in path mode, and so is one that decoders would read differently (`pipeline.mbeir.image_conversion`).
    """

    def __init__(self, store: ImageStore, mode: ImageMode, *, max_pixels: int, keep: int | None = None) -> None:
        self._store, self._mode, self._max_pixels = store, mode, max_pixels
        self._keep = keep or (_PATHS_KEPT if mode is ImageMode.PATH else _IMAGES_KEPT)
        self._known: OrderedDict[str, EncodedImage] = OrderedDict()
        self._digests: OrderedDict[str, str] = OrderedDict()

    @classmethod
    def of(cls, config: TeacherConfig, store: ImageStore) -> Self:
        """The encoder of a build for this teacher."""
        return cls(store, ImageMode(config.images), max_pixels=config.max_pixels)

    def digest(self, relative: str) -> str:
        """SHA-256 of the file in hexadecimal digits, without decoding it. Raises ImageProblem if there is no file.

        The digest of a file that is not sent unchanged differs from its plain SHA-256.
        """
        known = self._digests.get(relative)
        if known is None:
            self._remember(relative, self._store.read_bytes(relative))
            known = self._digests[relative]
        return known

    def _remember(self, relative: str, data: bytes) -> bool:
        """Caches the file's digest. Returns whether the file is plain."""
        plain = self._store.is_plain(relative, data)
        self._digests[relative] = hashlib.sha256(data if plain else data + _SEEN).hexdigest()
        if len(self._digests) > _PATHS_KEPT:
            self._digests.popitem(last=False)
        return plain

    def encode(self, relative: str) -> EncodedImage:
        """Raises ImageProblem for an image that cannot be used, so that a damaged file is a rejection and not the server's
        error."""
        if relative in self._known:
            self._known.move_to_end(relative)
            return self._known[relative]
        data = self._store.read_bytes(relative)
        image = self._store.open(relative, data)
        plain = self._remember(relative, data)
        if image.width * image.height > self._max_pixels:
            url = _data_url("image/jpeg", _reduced(image, self._max_pixels))
        elif self._mode is ImageMode.PATH and plain:
            url = self._store.resolve(relative).as_uri()
        else:
            file = self._store.portable(relative, data)
            url = _data_url(file.media_type, file.content)
        encoded = EncodedImage(url, self._digests[relative])
        self._known[relative] = encoded
        if len(self._known) > self._keep:
            self._known.popitem(last=False)
        return encoded


def _reduced(image: Image.Image, max_pixels: int) -> bytes:
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
