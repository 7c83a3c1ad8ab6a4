from __future__ import annotations

import io
import itertools
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.mbeir.extract import extract_images, find_parts
from pipeline.mbeir.extracted import MARKER, read_marker
from schemas.errors import CotError, InputError


def archive(contents: dict[str, bytes], *, extra: Callable[[tarfile.TarFile], None] = lambda tar: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        extra(tar)
    return buffer.getvalue()


def write_parts(folder: Path, data: bytes, count: int = 3) -> list[Path]:
    """Writes an archive in parts, split without regard to its members."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = [0, *sorted(random.Random(4).sample(range(1, len(data)), count - 1)), len(data)]
    parts = []
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        parts.append(folder / f"mbeir_images.tar.gz.part-{number:02d}")
        parts[-1].write_bytes(data[start:end])
    return parts


def pictures(count: int, size: int = 300) -> dict[str, bytes]:
    rng = random.Random(1)
    folders = ("mscoco_images/val2014", "oven_images/11", "edis_images")
    return {f"mbeir_images/{folders[n % 3]}/{n}.jpg": rng.randbytes(size + n) for n in range(count)}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder.parent)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_parts_are_read_as_one_stream(tmp_path: Path) -> None:
    contents = pictures(60)
    write_parts(tmp_path, archive(contents), 4)
    summary = extract_images(find_parts(tmp_path), tmp_path)
    assert tree(tmp_path / "mbeir_images") == contents
    assert (summary.files, summary.written, summary.size) == (60, 60, sum(map(len, contents.values())))
    assert not list(tmp_path.glob("*.tar.gz"))


def test_only_wanted_folders_are_extracted(tmp_path: Path) -> None:
    contents = pictures(30)
    parts = write_parts(tmp_path, archive(contents))
    extract_images(parts, tmp_path, folders=frozenset({"oven_images"}))
    assert tree(tmp_path / "mbeir_images") == {name: data for name, data in contents.items() if "oven" in name}
    extract_images(parts, tmp_path)  # the rest, later
    assert tree(tmp_path / "mbeir_images") == contents


def test_a_second_run_does_nothing_and_a_third_only_repairs(tmp_path: Path) -> None:
    contents = pictures(20)
    parts = write_parts(tmp_path, archive(contents))
    extract_images(parts, tmp_path)
    marker = (tmp_path / MARKER).stat().st_mtime_ns
    extract_images(parts, tmp_path)
    assert (tmp_path / MARKER).stat().st_mtime_ns == marker
    (tmp_path / MARKER).unlink()
    lost, cut, *_ = contents
    (tmp_path / lost).unlink()
    (tmp_path / cut).write_bytes(b"half")
    assert extract_images(parts, tmp_path).written == 2
    assert tree(tmp_path / "mbeir_images") == contents


def _stop(tar: tarfile.TarFile, name: str, kind: bytes, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    tar.addfile(info)


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("/tmp/evil.jpg", tarfile.REGTYPE, ""),
        ("../evil.jpg", tarfile.REGTYPE, ""),
        ("mbeir_images/../../evil.jpg", tarfile.REGTYPE, ""),
        ("elsewhere/evil.jpg", tarfile.REGTYPE, ""),
        ("mbeir_images/link", tarfile.SYMTYPE, "/etc"),
        ("mbeir_images/hard", tarfile.LNKTYPE, "/etc/passwd"),
        ("mbeir_images/device", tarfile.CHRTYPE, ""),
        ("mbeir_images/pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_evil_members_stop_the_extraction(tmp_path: Path, name: str, kind: bytes, link: str) -> None:
    dest = tmp_path / "deep" / "dest"
    parts = write_parts(dest, archive(pictures(3), extra=lambda tar: _stop(tar, name, kind, link)))
    with pytest.raises(CotError, match="not below mbeir_images|link or device"):
        extract_images(parts, dest)
    assert not list(tmp_path.rglob("evil*"))
    assert len(tree(dest / "mbeir_images")) == 3
    assert not (dest / MARKER).exists()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, archive(pictures(9)))
    parts[1].unlink()
    with pytest.raises(InputError, match="part 01 of the image archive is missing"):
        find_parts(tmp_path)
    with pytest.raises(InputError, match=r"no mbeir_images\.tar\.gz\.part-"):
        find_parts(tmp_path / "..")


def test_a_truncated_last_part_is_named_and_extracted_images_stay(tmp_path: Path) -> None:
    contents = pictures(50)
    parts = write_parts(tmp_path, archive(contents))
    whole = parts[-1].read_bytes()
    parts[-1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CotError, match=r"part-02.*\n.*download that part again"):
        extract_images(parts, tmp_path)
    assert 0 < len(tree(tmp_path / "mbeir_images")) < 50
    parts[-1].write_bytes(whole)
    assert 0 < extract_images(parts, tmp_path).written < 50
    assert tree(tmp_path / "mbeir_images") == contents


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, archive(pictures(50)))
    data = bytearray(parts[1].read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    parts[1].write_bytes(data)
    with pytest.raises(CotError, match="damaged"):
        extract_images(parts, tmp_path)
    assert not (tmp_path / MARKER).exists()


def test_too_little_space_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_parts(tmp_path, archive(pictures(3)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(CotError, match="are free at"):
        extract_images(parts, tmp_path)
    assert not (tmp_path / "mbeir_images").exists()


@pytest.mark.slow
def test_kill_at_random_moments_then_resume(tmp_path: Path) -> None:
    contents = pictures(3000, 4000)
    parts = write_parts(tmp_path, archive(contents))
    code = (
        "import sys; from pathlib import Path; from pipeline.mbeir.extract import *; d = Path(sys.argv[1]);"
        "print('go', flush=True); extract_images(find_parts(d), d)"
    )
    rng = random.Random(9)
    finished: dict[Path, tuple[int, int]] = {}
    kills = 0
    for _ in range(6):
        worker = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.15))
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        kills += read_marker(tmp_path) is None
        for path, identity in finished.items():  # finished files are not written again
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == identity
        done = list((tmp_path / "mbeir_images").rglob("[!.]*.jpg"))
        finished = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done}
    assert kills
    extract_images(parts, tmp_path)
    assert tree(tmp_path / "mbeir_images") == contents
    assert all((path.stat().st_ino, path.stat().st_mtime_ns) == identity for path, identity in finished.items())
