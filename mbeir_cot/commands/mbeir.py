"""`mbeir-cot mbeir …`: M-BEIR's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

app = typer.Typer(no_args_is_help=True)

Root = Annotated[Path, typer.Argument(metavar="DIR", help="The M-BEIR root: the directory with query/ and cand_pool/ in it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]
Images = Annotated[bool, typer.Option("--images/--no-images", help="Check whether each image file exists (one look-up each).")]


@app.command()
def stats(
    root: Root,
    as_json: Json = False,
    images: Images = True,
    cache: Annotated[Path | None, typer.Option(help="Where converted pools are kept [default: $MBEIR_COT_CACHE].")] = None,
    image_roots: ImageRoots = None,
) -> None:
    """Counts queries, positives, pools and missing images per split and dataset-task.

    Works on partial directories. Candidate pools are converted on first use (about 5 s per million candidates).
    """
    from pipeline.mbeir.stats import collect_stats, render

    collected = collect_stats(root, images=images, image_roots=image_roots or (), cache_dir=cache)
    if as_json:
        typer.echo(collected.model_dump_json(indent=1))
    else:
        printing.console().print(render(collected))


@app.command()
def check(
    root: Root,
    as_json: Json = False,
    images: Images = True,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image too: finds truncated ones. Slow.")] = False,
    max_examples: Annotated[int, typer.Option(min=1, help="Examples shown per kind of problem and file.")] = 5,
    image_roots: ImageRoots = None,
) -> None:
    """Finds every problem of an M-BEIR directory in one pass.

    Exits with 1 if there is any error; warnings and notes (quirks of the real benchmark) do not count.
    """
    from pipeline.mbeir.check import check as run_check
    from pipeline.mbeir.findings import render

    result = run_check(root, images=images, decode=decode, max_examples=max_examples, image_roots=image_roots or ())
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        printing.console().print(render(result))
    raise typer.Exit(0 if result.ok else 1)


@app.command()
def fetch(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Directory for M-BEIR; created if needed.")],
    datasets: Annotated[str, typer.Option(help="Comma-separated names [default: all ten].")] = "",
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="The images: a download of 169 GB, and as much again extracted.")
    ] = True,
    union: Annotated[
        bool | None, typer.Option("--union/--no-union", help="Union files and global pools [default: with all datasets].")
    ] = None,
    remove_parts: Annotated[bool, typer.Option(help="Delete the image archive once everything is extracted.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of TIGER-Lab/M-BEIR.")] = None,
) -> None:
    """Downloads M-BEIR from the Hugging Face Hub and extracts its images.

    Run it again after an interruption, or if images were lost or damaged: downloads resume, and only images that are missing or
    have another size are extracted. All parts of the image archive are needed even for one dataset. HF_TOKEN and HF_ENDPOINT
    are used if set.
    """
    from pipeline.mbeir.fetch import fetch_mbeir

    names = [name.strip() for name in datasets.split(",") if name.strip()] or None
    summary = fetch_mbeir(dest, datasets=names, images=images, union=union, remove_parts=remove_parts, revision=revision)
    if summary.lost:
        typer.echo(f"{summary.lost:,} images had gone missing or changed size since they were extracted")
    if summary.images is not None:
        typer.echo(f"{summary.images.files:,} images, {summary.images.written:,} of them written now")
    if summary.lacks:
        typer.echo(summary.lacks)
    typer.echo(f"M-BEIR is at {summary.dest}; check it with: mbeir-cot mbeir check {summary.dest}")
