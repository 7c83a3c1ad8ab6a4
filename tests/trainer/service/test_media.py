"""Images of requests: only from where it was allowed, and within the limits."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from schemas.errors import InputError
from schemas.service import ServiceLimits, ServiceSettings
from trainer.service.media import MediaLoader


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def loader(limits: ServiceLimits | None = None, **settings: Any) -> MediaLoader:
    return MediaLoader(ServiceSettings(name="m", limits=limits or ServiceLimits(), **settings))


def test_an_image_in_the_request_is_decoded() -> None:
    picture = loader().load("input 0", data_url(png()))
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (8, 8), (200, 10, 10))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png,abc", "no base64 data URL"),
        ("data:image/png;base64,????", "base64 is damaged"),
        (data_url(b"no image"), "no image of a known format"),
        (data_url(png(64, 64)[:-30]), "cannot be decoded"),
        (data_url(png(101, 100)), "more than the cap"),
        (data_url(png(900, 1)), "ratio"),
        (data_url(b"x" * 11_000), "more than 0.01 MiB"),
        ("ftp://example.org/a.png", "no data:, http:, https: or file: URL"),
        ("/etc/passwd", "no data:, http:, https: or file: URL"),
        ("file:///etc/passwd", "outside the directories"),
        ("http://127.0.0.1/a.png", "not one of --remote-host"),
        ("http://[broken/a.png", "not one of --remote-host"),
    ],
)
def test_what_is_not_allowed_or_no_image_is_refused(url: str, said: str) -> None:
    limits = ServiceLimits(pixels=10_000, image_mib=0.01)
    with pytest.raises(InputError, match=said) as caught:
        loader(limits).load("input 0", url)
    assert caught.value.remedy
    assert "passwd" not in str(caught.value)


def test_only_files_below_the_roots_are_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "other"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "sub" / "a b.png").write_bytes(png())
    (outside / "b.png").write_bytes(png())
    (root / "link.png").symlink_to(outside / "b.png")
    (root / "folder").symlink_to(outside)
    media = loader(media_roots=(root,))
    assert media.load("x", f"file://{root}/sub/a%20b.png").size == (8, 8)
    linked = tmp_path / "alias"
    linked.symlink_to(root)
    assert loader(media_roots=(linked,)).load("x", f"file://{linked}/sub/a%20b.png").size == (8, 8)
    for place in (
        f"{outside}/b.png", f"{root}/../other/b.png", f"{root}/%2e%2e/other/b.png", f"{root}/link.png", f"{root}/folder/b.png",
        f"{root}/none.png", f"{root}/sub", f"{root}", f"{root}-sibling/a.png", f"{root}/a%00.png",
    ):  # fmt: skip
        with pytest.raises(InputError, match="outside the directories|no such image"):
            media.load("x", f"file://{place}")
    with pytest.raises(InputError, match="outside the directories"):
        media.load("x", f"file://elsewhere{root}/sub/a%20b.png")


class _Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png() if self.path == "/a.png" else b"x" * 50_000)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_images_are_fetched_from_named_hosts_only(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    media = loader(ServiceLimits(image_mib=0.02), remote_hosts=("127.0.0.1",))
    assert media.load("x", f"{host}/a.png").size == (8, 8)
    for path, said in (("/moved", "HTTP 302"), ("/large", "more than 0.02 MiB")):
        with pytest.raises(InputError, match=said):
            media.load("x", host + path)
    with pytest.raises(InputError, match="not one of"):
        media.load("x", host.replace("127.0.0.1", "localhost") + "/a.png")
    with pytest.raises(InputError, match="not one of"):
        media.load("x", f"http://127.0.0.1@localhost:{host.rsplit(':', 1)[1]}/a.png")
