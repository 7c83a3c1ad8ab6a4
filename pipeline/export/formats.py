"""The formats. Each has a writer that turns samples into files, and a README on how to use them.

Field names are those of each project's own loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.export.lamra import lamra
from pipeline.export.llama_factory import llama_factory, ms_swift
from pipeline.export.samples import SkipReason
from pipeline.export.sentence_transformers import sentence_transformers
from pipeline.export.tevatron import tevatron
from pipeline.export.vlm2vec import vlm2vec
from pipeline.export.writer_result import Writer, Written

FORMATS: Final[dict[str, Writer]] = {
    "sentence-transformers": sentence_transformers,
    "llama-factory": llama_factory,
    "ms-swift": ms_swift,
    "vlm2vec": vlm2vec,
    "lamra": lamra,
    "tevatron": tevatron,
}

NAMES_PICTURES: Final = frozenset({"llama-factory", "ms-swift", "vlm2vec", "lamra"})
"""Formats that name pictures by path; the others contain them."""


def texts(
    name: str, out: Path, dataset: str, written: Written, skipped: Mapping[SkipReason, int], *, synthetic: bool
) -> dict[str, str]:
    """Text files of the export by name: the README on how to use the export, and those that the writer adds."""
    head = f"# {dataset} for {name}\n\n"
    if synthetic:
        head = f"**SYNTHETIC: invented queries and images (pocket world).**\n\n{head}"
    left = "".join(f"; {count:,} records are left out because {reason}" for reason, count in skipped.items())
    line = (
        f"{written.count:,} records, written by `mbeir-cot export --format {name}`{left}. MBEIR below is the M-BEIR directory."
    )
    body = (Path(__file__).parent / "readmes" / f"{name}.md").read_text(encoding="utf-8")
    remarks = "\n".join(written.remarks)
    readme = f"{written.header}{head}{line}\n\n{body}" + (f"\n{remarks}\n" if remarks else "")
    return {file: text.replace("OUT", out.name) for file, text in {"README.md": readme, **written.files}.items()}
