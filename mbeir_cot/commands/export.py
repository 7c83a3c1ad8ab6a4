"""`mbeir-cot export`: a dataset in another project's format."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.export.samples import Sample

console = printing.console()


class Format(StrEnum):
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    LLAMA_FACTORY = "llama-factory"
    MS_SWIFT = "ms-swift"
    VLM2VEC = "vlm2vec"
    LAMRA = "lamra"
    TEVATRON = "tevatron"


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory or a dataset's.")],
    format: Annotated[Format, typer.Option(help="The project to write for.")],  # noqa: A002
    out: Annotated[Path, typer.Option(help="The directory to write; it must not exist.")],
    mbeir: Annotated[Path | None, typer.Option(help="The M-BEIR directory [default: the build's].")] = None,
    negatives: Annotated[int, typer.Option(min=0, help="Hard negatives for each record, as far as it lists them.")] = 1,
    image_roots: ImageRoots = None,
) -> None:
    """Writes the records as a training project reads them, joined with M-BEIR's candidates, and a README on how to use them."""
    from pipeline.dataset.built_dataset import BuiltDataset
    from pipeline.export.formats import FORMATS, texts
    from pipeline.export.samples import Skipped, SkipReason, samples
    from pipeline.files.atomic_directory import replace_directory, staging_path
    from pipeline.mbeir.stores import plain_store
    from pipeline.meter import Meter
    from schemas.errors import InputError

    dataset = BuiltDataset.open(directory)
    settings = dataset.settings()
    root = mbeir or (settings.mbeir if settings is not None else None)
    if root is None or not root.is_dir():
        raise InputError(f"the M-BEIR directory of {directory} is not known or not here", "name it with --mbeir")
    roots = [*(image_roots or ()), *(settings.input.image_roots if settings is not None else ())]
    if out.exists():
        raise InputError(f"{out} exists", "name a new directory, or remove this one")
    skipped: Counter[SkipReason] = Counter()
    with Meter(f"export {format}", dataset.manifest.records, unit="records") as meter:

        def found() -> Iterator[Sample]:
            for one in samples(
                dataset, root, settings.input.candidate_cache if settings is not None else None, negatives=negatives
            ):
                meter.advance()
                if isinstance(one, Skipped):
                    skipped[one.reason] += 1
                else:
                    yield one

        new = staging_path(out)
        new.mkdir(parents=True, exist_ok=True)
        for left in new.iterdir():  # of an export that was interrupted
            _remove(left)
        written = FORMATS[format](found(), plain_store(root, roots), new, negatives)
    for name, text in texts(format, out, dataset.manifest.name, written, skipped, synthetic=dataset.manifest.synthetic).items():
        (new / name).write_text(text, encoding="utf-8")
    replace_directory(new, out)
    console.print(
        f"Wrote {written.count:,} records for {escape(format)} to {escape(str(out))}; see {escape(str(out / 'README.md'))}"
    )
    for reason, count in skipped.items():
        console.print(f"[yellow]{count:,} records were left out[/]: {escape(str(reason))}")


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
