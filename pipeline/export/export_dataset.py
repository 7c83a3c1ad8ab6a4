"""A whole dataset in another project's format, with a README on how to use it there."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.export.formats import FORMATS, NAMES_PICTURES, texts
from pipeline.export.portable_pictures import BESIDE, PortablePictures
from pipeline.export.samples import Sample, Skipped, SkipReason, samples, without_pictures
from pipeline.files.atomic_directory import replace_directory, staging_path
from pipeline.mbeir.image_store import ImageProblem, ImageStore
from pipeline.mbeir.stores import plain_store
from pipeline.progress_meter import Meter
from schemas.errors import ConfigError, InputError

_MOST_UNREADABLE: Final = 0.5
"""More records than this are not left out: so much is a disk that is not mounted."""


class Exported(NamedTuple):
    """What was exported: records, and how many were left out for which reason."""

    records: int
    skipped: dict[SkipReason, int]
    pictures: int = 0
    """Pictures written beside the export, because other decoders read M-BEIR's file differently or its name differs."""


def export_dataset(
    dataset: BuiltDataset,
    format: str,  # noqa: A002
    out: Path,
    *,
    mbeir: Path | None = None,
    negatives: int = 1,
    image_roots: Sequence[Path] = (),
) -> Exported:
    """Writes `out` atomically.

    format: sentence-transformers, llama-factory, ms-swift, vlm2vec, lamra or tevatron.
    mbeir: the M-BEIR directory, whose candidates are joined [default: the build's].
    negatives: hard negatives per record, if it lists that many.

    Raises ConfigError for an unknown format; InputError if `out` exists or M-BEIR's directory is unknown.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format}: unknown", f"one of {', '.join(FORMATS)}")
    settings = dataset.settings()
    root = mbeir or (settings.mbeir if settings is not None else None)
    if root is None or not root.is_dir():
        raise InputError(f"the M-BEIR directory of {dataset.directory} is not known or not here", "name it with --mbeir")
    roots = [*image_roots, *(settings.input.image_roots if settings is not None else ())]
    if out.exists():
        raise InputError(f"{out} exists", "name a new directory, or remove this one")
    cache = settings.input.candidate_cache if settings is not None else None
    skipped: Counter[SkipReason] = Counter()
    new, images = staging_path(out), plain_store(root, roots)
    pictures = PortablePictures(images, new, out) if format in NAMES_PICTURES else None
    opens = lru_cache(maxsize=1 << 20)(partial(_opens, images) if pictures is None else pictures.opens)
    with Meter(f"export {format}", dataset.manifest.records, unit="records") as meter:

        def usable() -> Iterator[Sample]:
            for sample in samples(dataset, root, cache, negatives=negatives):
                meter.advance()
                usable_sample = sample if isinstance(sample, Skipped) else without_pictures(sample, opens)
                if isinstance(usable_sample, Skipped):
                    skipped[usable_sample.reason] += 1
                else:
                    yield usable_sample if pictures is None else pictures.of(usable_sample)

        new.mkdir(parents=True, exist_ok=True)
        for path in new.iterdir():  # from an interrupted export
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        written = FORMATS[format](usable(), images, new, negatives)
    if (lost := skipped[SkipReason.UNREADABLE]) > _MOST_UNREADABLE * (written.count + skipped.total()):
        shutil.rmtree(new)
        raise InputError(
            f"the images of {lost:,} of {dataset.manifest.records:,} records cannot be opened; nothing was written",
            f"are the images below {root} all there, and is the disk with them mounted? Where links lead out of it, name "
            "their directory with --image-root",
        )
    if pictures is not None and pictures.count:
        written = replace(written, remarks=(*written.remarks, f"{pictures.count:,} {BESIDE}"))
    for name, text in texts(format, out, dataset.manifest.name, written, skipped, synthetic=dataset.manifest.synthetic).items():
        (new / name).write_text(text, encoding="utf-8")
    replace_directory(new, out)
    return Exported(written.count, dict(skipped), pictures.count if pictures is not None else 0)


def _opens(images: ImageStore, path: str) -> bool:
    try:
        images.is_portable(path)
    except ImageProblem:
        return False
    return True
