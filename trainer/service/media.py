"""Images of requests: inside the request (data:), from named directories (file:), or from named hosts (http:, https:).

Nothing is opened or fetched that was not allowed when the service was started, and an image's size is checked before it is
decoded. Pixels are those that training and evaluation see (`pipeline.mbeir.image_conversion`).
"""

from __future__ import annotations

import base64
import binascii
import time
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx
from PIL import Image

from pipeline.mbeir.image_store import MAX_RATIO, ImageProblem, ImageStore
from pipeline.mbeir.stores import media_store
from schemas.errors import InputError
from schemas.service import ServiceSettings

_FETCH_S: Final = 10.0


class MediaLoader:
    """Reads images for requests. Blocking: it is called in threads."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._mib = settings.limits.image_mib
        pixels = settings.limits.pixels
        self._roots = [place for root in settings.media_roots for place in {root.absolute(), root.resolve()}]
        self._stores = [media_store(root, max_pixels=pixels, max_ratio=MAX_RATIO) for root in self._roots]
        self._decoder = media_store(Path(), max_pixels=pixels, max_ratio=MAX_RATIO)
        self._hosts = frozenset(host.lower() for host in settings.remote_hosts)
        self._client: httpx.Client | None = None

    def load(self, name: str, url: str) -> Image.Image:
        """The picture in RGB. `name` stands for it in messages, which do not repeat the URL: it may hold a signature.

        Raises InputError for a place that is not allowed and for what is no usable image.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            content = self._decode_data(name, url)
        elif scheme in ("http", "https"):
            content = self._fetch(name, url)
        elif scheme == "file":
            content = self._read(name, url)
        else:
            raise InputError(f"{name}: no data:, http:, https: or file: URL", "send the image as data:image/…;base64,…")
        try:
            return self._decoder.open(name, content)
        except ImageProblem as problem:
            raise InputError(f"{name}: {problem.detail}", "send a JPEG, PNG, WEBP, GIF or BMP file within the limits") from None

    def _decode_data(self, name: str, url: str) -> bytes:
        head, comma, body = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InputError(f"{name}: no base64 data URL", "send data:image/…;base64,…")
        self._check_size(name, len(body) * 3 // 4)
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"{name}: its base64 is damaged", "encode the file again") from None

    def _read(self, name: str, url: str) -> bytes:
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.netloc in ("", "localhost") and ".." not in path.parts and "\0" not in str(path):
            for root, store in zip(self._roots, self._stores, strict=True):
                if path.is_relative_to(root):
                    return self._read_below(name, store, str(path.relative_to(root)))
        raise InputError(f"{name}: a file outside the directories of --media-root", "send the image in the request")

    def _read_below(self, name: str, store: ImageStore, relative: str) -> bytes:
        try:
            self._check_size(name, store.resolve(relative).stat().st_size)
            return store.read_bytes(relative)
        except ImageProblem:
            raise InputError(f"{name}: no such image below --media-root", "check the path") from None

    def _fetch(self, name: str, url: str) -> bytes:
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            host = ""
        if host.lower() not in self._hosts:
            raise InputError(f"{name}: its host is not one of --remote-host", "send the image in the request")
        self._client = self._client or httpx.Client(follow_redirects=False, timeout=_FETCH_S)
        content, until = bytearray(), time.monotonic() + _FETCH_S
        try:
            with self._client.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise InputError(f"{name}: its host answers HTTP {answer.status_code}", "send the image in the request")
                for block in answer.iter_bytes():
                    content += block
                    self._check_size(name, len(content))
                    if time.monotonic() > until:
                        raise InputError(f"{name}: its host is slow", "send the image in the request")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputError(f"{name}: cannot be fetched ({type(error).__name__})", "send it in the request") from None
        return bytes(content)

    def _check_size(self, name: str, size: int) -> None:
        if size > self._mib * 2**20:
            raise InputError(f"{name}: more than {self._mib:g} MiB", "reduce the image")
