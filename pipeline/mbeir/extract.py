"""M-BEIR's image archive, read from its parts as one stream and never joined on disk.

A gzip stream cannot be read from the middle, so a run after an interruption decompresses from the beginning, but writes only
what is missing: a picture is written beside its place and renamed, and one of full size is kept. A marker, written at the end,
makes further runs do nothing unless images were lost since."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.mbeir.extracted import ExtractSummary, Listing, covers, read_marker, write_marker
from pipeline.progress_meter import Meter
from schemas.errors import CotError, InputError
from schemas.os_errors import explained

IMAGES: Final = "mbeir_images"
_COPY_BYTES: Final = 1 << 20
_PART_NAME: Final = re.compile(r"^(?P<stem>.+\.tar\.gz)\.part-(?P<number>\d+)$")


class _PartsStream(io.RawIOBase):
    """The concatenated parts as a file that can only be read forward."""

    def __init__(self, parts: Sequence[Path], meter: Meter) -> None:
        self._waiting = list(parts)
        self._meter = meter
        self._file: io.BufferedIOBase | None = None
        self.current = parts[0]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        while True:
            if self._file is None:
                if not self._waiting:
                    return 0
                self.current = self._waiting.pop(0)
                self._file = self.current.open("rb", buffering=0)  # type: ignore[assignment]
            count = self._file.readinto(buffer) or 0  # type: ignore[arg-type,union-attr]
            if count:
                self._meter.advance(count)
                return count
            self._file.close()  # type: ignore[union-attr]
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def find_parts(directory: Path) -> list[Path]:
    """The archive's parts in order. Raises InputError if one is missing or there are none."""
    parts = {int(m["number"]): path for path in directory.glob(f"{IMAGES}.tar.gz.part-*") if (m := _PART_NAME.match(path.name))}
    if not parts:
        raise InputError(f"no {IMAGES}.tar.gz.part-* in {directory}", "download them with `mbeir-cot mbeir fetch DIR`")
    absent = sorted(set(range(max(parts) + 1)) - set(parts))
    if absent:
        raise InputError(
            f"part {', '.join(f'{n:02d}' for n in absent)} of the image archive is missing in {directory}",
            "download it again: all parts are one stream, so even a few images need them all",
        )
    return [parts[number] for number in sorted(parts)]


def extract_images(
    parts: Sequence[Path], dest: Path, *, folders: frozenset[str] | None = None, again: bool = False
) -> ExtractSummary:
    """Extracts ``mbeir_images/`` below `dest`; `folders` restricts to some of its folders.

    Nothing is written outside ``dest/mbeir_images``: links, devices and names that lead elsewhere stop the extraction.
    Raises CotError for damaged archives and full disks; extracted files stay, and the next run continues. `again`: ignore the
    marker of an earlier extraction; files of full size are kept.
    """
    sizes = tuple((part.name, part.stat().st_size) for part in parts)
    done = read_marker(dest)
    if not again and done is not None and done.parts == sizes and covers(done, folders):
        return done
    total = sum(size for _, size in sizes)
    free = shutil.disk_usage(dest).free
    if not (dest / IMAGES).exists() and folders is None and free < total:
        raise CotError(
            f"{free >> 30} GiB are free at {dest}; the images need about {total >> 30} GiB besides their archive",
            "free space, name another directory, or fetch fewer datasets with --datasets",
        )
    files = size = written = 0
    with (
        Listing(dest) as listing,
        Meter("extracting images", total) as meter,
        _PartsStream(parts, meter) as stream,
    ):
        try:
            with (
                gzip.GzipFile(fileobj=io.BufferedReader(stream, _COPY_BYTES)) as unzipped,
                tarfile.open(fileobj=unzipped, mode="r|") as archive,
            ):
                for member in archive:
                    place = _place(member, dest)
                    if member.isdir() or (folders is not None and place.relative_to(dest / IMAGES).parts[0] not in folders):
                        continue
                    files, size = files + 1, size + member.size
                    written += _extract(archive, member, place)
                    listing.add(place.relative_to(dest).as_posix(), member.size)
                    meter.note = f"{files:,} files, {written:,} new"
                while unzipped.read(_COPY_BYTES):  # to the end, where gzip verifies its checksum
                    pass
        except (EOFError, tarfile.ReadError) as error:
            raise CotError(
                f"the image archive ends too early or is damaged in {stream.current.name} ({error})",
                "download that part again (compare its size with the one on the Hub), then run again: finished files stay",
            ) from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise CotError(
                f"the image archive is damaged in {stream.current.name} ({error})",
                "download that part again, then run again: finished files stay",
            ) from error
        except OSError as error:
            cause, remedy = explained(error)
            raise CotError(
                f"the images could not be extracted to {dest}: {cause} (after {files:,} images)",
                f"{remedy}; then run again: it continues",
            ) from error
    os.sync()  # a power cut must not leave the marker without the pictures
    summary = ExtractSummary(parts=sizes, folders=_sorted(folders), files=files, size=size, written=written)
    write_marker(dest, summary)
    return summary


def _sorted(folders: frozenset[str] | None) -> tuple[str, ...] | None:
    return None if folders is None else tuple(sorted(folders))


def _place(member: tarfile.TarInfo, dest: Path) -> Path:
    """The member's path. Raises CotError for one that cannot belong to M-BEIR's archive."""
    name = PurePosixPath(member.name)
    parts = [part for part in name.parts if part != "."]
    if name.is_absolute() or ".." in parts or "\\" in member.name or not parts or parts[0] != IMAGES:
        if member.isdir() and not parts:
            return dest / IMAGES
        raise CotError(
            f"the image archive holds {member.name!r}, which is not below {IMAGES}/",
            "this is not M-BEIR's archive; nothing was written outside, do not use the file",
        )
    if not (member.isfile() or member.isdir()):
        raise CotError(
            f"the image archive holds {member.name!r}, a link or device",
            "M-BEIR's archive has files only; nothing was written outside, do not use the file",
        )
    return dest.joinpath(*parts)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> int:
    """1 if the file was written, 0 if it already existed."""
    try:
        if place.stat().st_size == member.size:
            return 0
    except FileNotFoundError:
        pass
    source = archive.extractfile(member)
    if source is None:
        raise tarfile.ReadError(f"no content for {member.name}")
    temporary = place.with_name(f".{place.name}.part")
    try:
        target = temporary.open("wb")
    except FileNotFoundError:
        place.parent.mkdir(parents=True, exist_ok=True)
        target = temporary.open("wb")
    with target:
        shutil.copyfileobj(source, target, _COPY_BYTES)
    temporary.replace(place)
    return 1
