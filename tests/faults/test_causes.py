"""Each place that reads or fetches files calls a refusal of the system by its name, and blames neither the file nor the network.

The refusals are real where a link in a circle (ELOOP) makes them; where a library fetches, it raises what it would.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import load_config
from pipeline.ledger.segment import SegmentStore
from pipeline.mbeir.convert import converted
from pipeline.mbeir.extract import extract_images
from pipeline.mbeir.extracted import LISTING, MARKER, ExtractSummary, Listing, lost_images, read_marker
from pipeline.mbeir.fetch import fetch_mbeir
from pipeline.mbeir.instructions import InstructionTable
from pipeline.mbeir.jsonl import read_lines
from pipeline.serving.model_check import check_files
from pipeline.serving.weights import fetch_model
from schemas.config import BuildConfig
from schemas.errors import CotError
from schemas.hosting import ServerConfig
from schemas.os_errors import explained, refused_by_system
from tests.pipeline.mbeir.test_extract import archive, write_parts


def circle(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)
    return path


def failing(number: int, kind: type[Exception] = OSError) -> Callable[..., Any]:
    """What raises it, or an exception of a library's own that comes from it."""

    def fail(*_: Any, **__: Any) -> Any:
        cause = OSError(number, os.strerror(number))
        if kind is OSError:
            raise cause
        raise kind("what a library says") from cause

    return fail


def config(place: Path) -> None:
    load_config(circle(place / "config.yaml"), BuildConfig)


def instructions(place: Path) -> None:
    InstructionTable.load(circle(place / "query_instructions.tsv"))


def pool(place: Path) -> None:
    converted(circle(place / "mbeir_cirr_task7_cand_pool.jsonl"), place / "cache")


def cache_entry(place: Path) -> None:
    path = place / "mbeir_cirr_task7_cand_pool.jsonl"
    line = '{"did": "1:1", "txt": "a", "modality": "text", "img_path": null, "src_content": null}\n'
    path.write_text(line, encoding="utf-8")
    meta = converted(path, place / "cache") / "meta.json"
    meta.unlink()
    circle(meta)
    converted(path, place / "cache")


def marker(place: Path) -> None:
    circle(place / MARKER)
    read_marker(place)


def listing(place: Path) -> None:
    circle(place / LISTING)
    lost_images(place, ExtractSummary(parts=(), folders=None, files=1, size=1, written=1))


def extracted_image(place: Path) -> None:
    with Listing(place) as listed:
        listed.add("mbeir_images/a.jpg", 3)
    circle(place / "mbeir_images" / "a.jpg")
    lost_images(place, ExtractSummary(parts=(), folders=None, files=1, size=3, written=1))


@pytest.mark.parametrize("read", [lambda path: list(read_lines(path)), InstructionTable.load])
def test_a_disk_that_fails_while_it_is_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "queries.jsonl").symlink_to("/proc/self/mem")  # opens, and answers EIO
    with pytest.raises(CotError, match="the disk or its connection fails") as caught:
        read(tmp_path / "queries.jsonl")
    assert "dmesg" in caught.value.remedy


def segment(place: Path) -> None:
    circle(place / "segment-1.parquet")
    SegmentStore(place).open("segment-1.parquet")


def model_config(place: Path) -> None:
    circle(place / "config.json")
    check_files(ServerConfig(model=str(place)), place)


def embedder(place: Path) -> None:
    from trainer.model.metadata import METADATA, EmbedderMetadata

    circle(place / METADATA)
    EmbedderMetadata.read(place)


def embeddings(place: Path) -> None:
    from trainer.embedding.files import load_embeddings

    load_embeddings(circle(place / "cirr_embed.npy"))


def labels(place: Path) -> None:
    from pipeline.report.agreement import read_labels

    read_labels(circle(place / "labels.json"))


def tokenizer(place: Path) -> None:
    from pipeline.traces.token_counts import load_tokenizer

    circle(place / "tokenizer.json")
    load_tokenizer(str(place))


def progress(place: Path) -> None:
    from mbeir_cot.commands.build import status

    circle(place / "work" / "progress.json")
    status(place)


@pytest.mark.parametrize(
    "read",
    [
        config,
        instructions,
        pool,
        cache_entry,
        marker,
        listing,
        extracted_image,
        segment,
        model_config,
        embedder,
        embeddings,
        labels,
        tokenizer,
        progress,
    ],
)
def test_what_is_read(tmp_path: Path, read: Callable[[Path], None]) -> None:
    with pytest.raises(CotError, match="lead in a circle") as caught:
        read(tmp_path)
    assert "namei -l" in str(caught.value)


def fetch(place: Path) -> None:
    fetch_mbeir(place, images=False)


def weights(place: Path) -> None:
    fetch_model(ServerConfig(model="org/model"))


def dataset(place: Path) -> None:
    from pipeline.dataset.open_dataset import open_dataset

    open_dataset("org/data")


def training_data(place: Path) -> None:
    from trainer.data.dataset import Records

    Records.load("org/data")


def trained_embedder(place: Path) -> None:
    from trainer.model.location import locate

    locate(Path("org/model"))


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.ENOSPC, "the disk is full", "free space"),
        (errno.EDQUOT, "your quota", "quota -s"),
        (errno.EMFILE, "too many open files", "ulimit -n"),
        (errno.EROFS, "read-only", "mount it writable"),
        (errno.EIO, "the disk or its connection fails", "dmesg"),
    ],
)
@pytest.mark.parametrize("bring", [fetch, weights, dataset, training_data, trained_embedder])
def test_what_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bring: Callable[[Path], None], number: int, cause: str, remedy: str
) -> None:
    import huggingface_hub

    import pipeline.mbeir.fetch

    for module in (huggingface_hub, pipeline.mbeir.fetch):
        monkeypatch.setattr(module, "snapshot_download", failing(number))
    with pytest.raises(CotError, match=cause) as caught:
        bring(tmp_path)
    assert remedy in caught.value.remedy
    assert "network" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "cause"), [(errno.ENOMEM, "no memory"), (errno.EIO, "connection fails"), (errno.EMFILE, "open files")]
)
def test_a_model_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    """transformers raises an exception of its own from the system's."""
    import trainer.model.pretrained as module
    from schemas.training import ModelSettings

    monkeypatch.setattr(module.AutoProcessor, "from_pretrained", failing(number, ValueError))
    with pytest.raises(CotError, match=cause) as caught:
        module.load_pretrained("org/base", ModelSettings(base="org/base"))
    assert "name a directory" not in caught.value.remedy
    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", failing(number, ValueError))
    with pytest.raises(CotError, match=cause) as caught:
        module.check_emb_token(tmp_path, 1)
    assert "another checkpoint of the run" not in caught.value.remedy


@pytest.mark.parametrize(
    ("number", "cause"), [(errno.EIO, "connection fails"), (errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")]
)
def test_an_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    import pipeline.mbeir.extract

    parts = write_parts(tmp_path, archive({"mbeir_images/oven_images/a.jpg": b"picture"}))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.mbeir.extract, "_extract", failing(number))
        with pytest.raises(CotError, match=cause) as caught:
            extract_images(parts, tmp_path)
    assert "run again: it continues" in caught.value.remedy
    assert extract_images(parts, tmp_path).files == 1


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (OSError(errno.EIO, "Input/output error", "data/a.parquet"), "the disk or its connection fails of data/a", "dmesg"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "ConnectionResetError", "network"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "TimeoutError", "network"),
    ],
)
def test_a_push(error: OSError, cause: str, remedy: str) -> None:
    from pipeline.hub.push import PushError, understood

    with pytest.raises(PushError, match=cause) as caught, understood("org/data"):
        raise error
    assert remedy in caught.value.remedy
    assert ("network" in caught.value.remedy) == (remedy == "network")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError("[Errno 5] Error reading bytes from file. Detail: [errno 5] Input/output error"), "connection fails"),
        (RuntimeError("Cannot allocate memory (os error 12)"), "no memory"),
        (OSError(errno.ETIMEDOUT, "Connection timed out", "/nfs/a.json"), "does not answer"),
        (
            OSError(errno.ETIMEDOUT, "Failed to open local file 'a'. Detail: [errno 110] Connection timed out"),
            "does not answer",
        ),
        (OSError(errno.ESHUTDOWN, "Cannot send after transport endpoint shutdown", "/lustre/a"), "cut this machine off"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/fuse/a"), "has gone"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), None),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), None),
        (pa.ArrowInvalid("Parquet magic bytes not found"), None),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), None),
        (OSError("org/base is not a valid model identifier"), None),
    ],
)
def test_what_is_of_the_system(error: Exception, cause: str | None) -> None:
    refused = refused_by_system(error)
    assert (refused is None) if cause is None else (refused is not None and cause in refused.cause)
    assert explained(error).remedy
