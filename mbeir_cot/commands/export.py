"""`mbeir-cot export`: a dataset in another project's format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

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
    negatives: Annotated[int, typer.Option(min=0, help="Hard negatives per record, if it lists that many.")] = 1,
    image_roots: ImageRoots = None,
) -> None:
    """Writes the records in a training project's format, joined with M-BEIR's candidates, with a README on how to use them."""
    from pipeline.dataset.open_dataset import open_dataset
    from pipeline.export.export_dataset import export_dataset
    from pipeline.export.samples import SkipReason

    written = export_dataset(
        open_dataset(directory), str(format), out, mbeir=mbeir, negatives=negatives, image_roots=image_roots or ()
    )
    console.print(
        f"Wrote {written.records:,} records for {escape(format)} to {escape(str(out))}; see {escape(str(out / 'README.md'))}"
    )
    if written.pictures:
        console.print(f"{written.pictures:,} pictures are written beside it, because decoders disagree on M-BEIR's files")
    for reason, count in written.skipped.items():
        lists = "; `mbeir-cot mbeir check DIR --decode` lists the images" if reason == SkipReason.UNREADABLE else ""
        console.print(f"[yellow]{count:,} records were left out[/]: {escape(str(reason))}{escape(lists)}")
