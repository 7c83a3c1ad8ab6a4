"""A finished dataset on disk, as every step after the build reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS
from pipeline.files.durable import sha256_file
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.manifest import Manifest
from schemas.os_errors import explained

Part = Literal["data", "rejected", "with_images"]
SETTINGS: Final = "config.json"
"""In a build's ``work/``: all settings, paths included; never part of a dataset."""


class BuiltDataset:
    """A dataset's directory, or a build's with the dataset in it.

    directory: contains ``manifest.json``, ``data/`` and ``rejected/``. build: the build's directory, if known.
    """

    def __init__(self, directory: Path, build: Path | None, manifest: Manifest) -> None:
        self.directory, self.build, self.manifest = directory, build, manifest

    @classmethod
    def open(cls, place: Path) -> BuiltDataset:
        """Raises InputError if the directory contains no finished dataset."""
        for directory in (place / "dataset", place):
            file = directory / "manifest.json"
            if not file.is_file():
                continue
            try:
                manifest = Manifest.model_validate_json(file.read_bytes())
            except ValueError as error:
                raise InputError(f"{file} is damaged: {error}", "build the dataset again; answers are in the ledger") from error
            build = directory.resolve().parent
            return cls(directory, build if (build / "work").is_dir() else None, manifest)
        raise InputError(f"{place} contains no finished dataset", "`mbeir-cot status DIR` tells how far a build is")

    def parts(self) -> list[str]:
        return sorted({file.path.split("/")[0] for file in self.manifest.files})

    def table(self, part: Part = "data", columns: Sequence[str] | None = None) -> pa.Table:
        paths = [str(self.directory / file.path) for file in self.manifest.files if file.path.startswith(f"{part}/")]
        try:
            return _with_new_columns(pads.dataset(paths, format="parquet"), part, columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{self.directory / part} cannot be read: {error}", explained(error, "build the dataset again").remedy
            ) from error

    def records(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The records, one row each. Raises InputError for files that cannot be read."""
        return self.table("data", columns)

    def rejections(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rejected queries, each with `stage` and `reason`."""
        return self.table("rejected", columns)

    def rows(self, part: Part = "data", columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows as dicts, converted a few thousand at a time."""
        for batch in self.table(part, columns).to_batches(max_chunksize=4_096):
            yield from batch.to_pylist()

    def row(self, identifier: str) -> tuple[Part, dict[str, Any]]:
        """The record or rejection with this id. Raises InputError if there is none."""
        for part in ("data", "rejected"):
            ids = self.table(part, ["id"])["id"]
            position = ids.index(identifier).as_py()
            if position >= 0:
                return part, self.table(part).slice(position, 1).to_pylist()[0]
        raise InputError(
            f"{self.directory} has no row {identifier!r}", "ids look like train/cirr/task7/8:1; see the column `id`"
        )

    def settings(self, image_roots: Sequence[Path] = ()) -> BuildConfig | None:
        """The build's settings, if its directory is known; `image_roots` are added to them."""
        file = self.build / "work" / SETTINGS if self.build is not None else None
        if file is None or not file.is_file():
            return None
        try:
            settings = BuildConfig.model_validate_json(file.read_bytes())
        except ValueError:  # of another version
            return None
        choice = settings.input.model_copy(update={"image_roots": (*settings.input.image_roots, *image_roots)})
        return settings.model_copy(update={"input": choice})

    def mismatches(self) -> Iterator[str]:
        """Describes how the files differ from the manifest."""
        listed = {file.path for file in self.manifest.files}
        for file in self.manifest.files:
            path = self.directory / file.path
            if not path.is_file():
                yield f"{file.path} is missing"
            elif path.stat().st_size != file.bytes:
                yield f"{file.path} has {path.stat().st_size:,} bytes, not {file.bytes:,}"
            elif sha256_file(path) != file.sha256:
                yield f"{file.path} has a SHA-256 that differs from the manifest's"
        for path in sorted(self.directory.rglob("*.parquet")):
            name = path.relative_to(self.directory).as_posix()
            if name not in listed:
                yield f"{name} is not in the manifest"


def _with_new_columns(found: pads.Dataset, part: Part, columns: Sequence[str] | None) -> pa.Table:
    """A part's table. Columns that an earlier version did not write are null, or empty lists."""
    today = {field.name: field for field in (REJECTIONS if part == "rejected" else RECORDS)}
    written = found.schema.names
    wanted = list(columns) if columns is not None else [*written, *(name for name in today if name not in written)]
    new = [name for name in wanted if name in today and name not in written]
    table = found.to_table(columns=[name for name in wanted if name not in new])
    for name in new:
        kind = today[name].type
        empty = pa.array([[]] * len(table), kind) if pa.types.is_list(kind) else pa.nulls(len(table), kind)
        table = table.append_column(today[name], empty)
    return table.select(wanted)
