"""Exports an embedder as whole weights that any server of the model's family can load, and proves it before it is written.

The gate: on queries and candidates with and without images, and with traces written,

1. embeddings of a real vLLM pooling server have a cosine of at least 0.999 with those of the trained adapter, and
2. the first token that a real vLLM generating server writes greedily, the route, is the adapter's own.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.files.atomic_directory import replace_directory, staging_path
from pipeline.serving.direct import opened
from pipeline.serving.server import ManagedServer
from prompts import ImageSlot
from schemas.errors import ConfigError, CotError
from schemas.hosting import ServerConfig
from schemas.record import EMB_TOKEN
from schemas.training import AdaptiveSettings
from trainer.data.encoding import EncodedSequence
from trainer.embedding.adaptive import AdaptiveEmbedder
from trainer.model.embedder import IDENTITY, Embedder
from trainer.release.sentence_transformers import write_modules

COSINE: Final = 0.999
EVEN: Final = {"bfloat16": 0.25, "float32": 0.001}
"""Log odds of a route within which rounding decides it. A logit between 16 and 32 has steps of 0.125 in bfloat16, and two are
compared."""
REPORT: Final = "merge_report.json"
_MAX_LENGTH: Final = 8192
_MOST: Final = 0.92
_SPARE: Final = 0.02
"""Of the memory that is free: this process's own context, and what moves between the question and vLLM's own."""
_ADVICE: Final = "check that vLLM and transformers agree on the base model and its image processor"


class MergeError(CotError):
    """An export that is not what was trained. Nothing is written."""


class Sample(NamedTuple):
    """A row as the adapter sees it: its embedding, its first token's route, and the row with the trace it wrote."""

    row: EncodedSequence
    query: bool
    direct: bool
    vector: np.ndarray[Any, np.dtype[np.float32]]
    p_direct: float = 0.0


class Report(NamedTuple):
    samples: int
    least_cosine: float
    routes: int
    routes_equal: int
    even: tuple[str, ...] = ()
    """Queries of the other routes: as good as even, so that rounding decides (see `EVEN`)."""


def merge(
    embedder: Embedder,
    queries: list[EncodedSequence],
    candidates: list[EncodedSequence],
    out: Path,
    *,
    settings: AdaptiveSettings,
    card: str = "",
    progress: Callable[[str], None] = lambda line: None,
    spoil: Callable[[Path], None] = lambda directory: None,
) -> Report:
    """Writes `out`, or raises MergeError and leaves nothing. `card`: its README.

    `spoil` gets the export before it is examined (tests).
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists", "name another directory, or remove it")
    samples = list(_samples(embedder, queries, candidates, settings))
    new = staging_path(out)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write_whole(embedder, new, card)
        plan = _plan(embedder)
        _free(embedder)
        spoil(new)
        progress("starting a pooling server")
        least = float(np.min(list(_pooled_cosines(plan, new, samples))))
        if not least >= COSINE:  # a NaN is no agreement
            raise MergeError(
                f"the export is not what was trained: least cosine {least:.5f} (at least {COSINE}); nothing was written",
                _ADVICE,
            )
        progress("starting a generating server")
        asked = [sample for sample in samples if sample.query]
        same = _routes(plan, new, asked)
        even, wrong = sort_disagreements(asked, same, plan.dtype)
        if wrong:
            raise MergeError(
                f"the export is not what was trained: {sum(same)} of {len(asked)} routes equal "
                f"({len(even)} of the others are even to within rounding); nothing was written",
                _ADVICE,
            )
        report = Report(len(samples), least, len(asked), sum(same), tuple(even))
        (new / REPORT).write_text(json.dumps(report._asdict(), indent=1) + "\n", encoding="utf-8")
        replace_directory(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return report


def sort_disagreements(samples: list[Sample], same: list[bool], dtype: str) -> tuple[list[str], list[str]]:
    """Names of the queries with other routes: those that are even to within rounding, and those that are not."""
    even: list[str] = []
    wrong: list[str] = []
    for sample, agrees in zip(samples, same, strict=True):
        if not agrees:
            p = min(max(sample.p_direct, 1e-9), 1 - 1e-9)
            (even if abs(math.log(p / (1 - p))) <= EVEN[dtype] else wrong).append(sample.row.name)
    return even, wrong


def _samples(
    embedder: Embedder, queries: list[EncodedSequence], candidates: list[EncodedSequence], settings: AdaptiveSettings
) -> Iterator[Sample]:
    """Queries as they are first read, the same with the traces that they lead to, and candidates."""
    adaptive = AdaptiveEmbedder(embedder, settings)
    learned = adaptive.embed(queries, route="learned")
    written = adaptive.embed(queries, route="always-reason")
    traced = [
        EncodedSequence(row.name, row.prompt, row.pictures, one.trace.strip())
        for row, one in zip(queries, written, strict=True)
    ]
    plain = [*queries, *(row for row in traced if row.written), *candidates]
    with torch.inference_mode():
        for i, row in enumerate(plain):
            vectors, _ = embedder(embedder.encoder().chunk([row]).to(embedder.device), labelled=False)
            is_query = i < len(queries)
            direct = is_query and not learned[i].reasoned
            p_direct = learned[i].p_direct if is_query else 0.0
            yield Sample(row, is_query, direct, vectors[0].float().cpu().numpy(), p_direct)


def write_whole(embedder: Embedder, directory: Path, card: str = "") -> None:
    """Whole weights, processor, identity, what sentence-transformers reads, and the card."""
    base = embedder.identity.base
    named = (
        Path(base).name if Path(base).is_absolute() else base
    )  # nothing is loaded from it, and the directory may be published
    identity = embedder.identity.model_copy(update={"merged": True, "base": named})
    embedder.merged_model().save_pretrained(directory)
    embedder.processor.save_pretrained(directory)
    (directory / IDENTITY).write_text(json.dumps(identity.model_dump(), indent=1) + "\n", encoding="utf-8")
    write_modules(embedder, directory)
    if card:
        (directory / "README.md").write_text(card, encoding="utf-8")


class Plan(NamedTuple):
    """What the examining servers must know of the embedder."""

    device: torch.device
    dtype: Literal["bfloat16", "float32"]
    max_model_len: int
    ending: str
    """What follows a row before it is pooled."""


def _plan(embedder: Embedder) -> Plan:
    text = embedder.model.config.get_text_config()
    return Plan(
        embedder.device,
        "bfloat16" if embedder.model.dtype == torch.bfloat16 else "float32",
        min(_MAX_LENGTH, text.max_position_embeddings),
        EMB_TOKEN if embedder.identity.pool == "token" else "",
    )


def _free(embedder: Embedder) -> None:
    """Gives the GPU's memory to the servers, which need it for a second copy: the vectors to compare with are there."""
    if embedder.device.type == "cuda":
        embedder.to("cpu")
        torch.cuda.empty_cache()


def _share(device: torch.device) -> float:
    """vLLM's share of the GPU's memory: it refuses to start where less is free, and others may be using some."""
    free, total = torch.cuda.mem_get_info(device)
    share = math.floor(min(_MOST, free / total - _SPARE) * 100) / 100
    if share <= 0:
        raise ConfigError(
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free on {device}: too little for the server of the export",
            "end what else uses that GPU, or name another in CUDA_VISIBLE_DEVICES",
        )
    return share


def server_config(plan: Plan, directory: Path, *more: str) -> ServerConfig:
    """The server that examines the export in `directory`."""
    on_gpu = plan.device.type == "cuda"
    memory = {"gpu_memory_utilization": _share(plan.device)} if on_gpu else {}
    return ServerConfig(
        model=str(directory),
        served_name="embedder",
        device="cuda" if on_gpu else "cpu",
        dtype=plan.dtype,
        max_model_len=plan.max_model_len,
        images_per_prompt=1,
        max_num_seqs=32,
        max_pixels=None,
        extra_args=more,
        **memory,
    )


def _pooled_cosines(plan: Plan, directory: Path, samples: list[Sample]) -> list[float]:
    pooler = json.dumps({"seq_pooling_type": "LAST", "use_activation": True})
    more = ("--runner", "pooling", "--convert", "embed", "--pooler-config", pooler)
    with ManagedServer(server_config(plan, directory, *more)) as server:
        found = []
        for sample in samples:
            answer = _ask(
                f"{server.endpoint.url}/embeddings", _messages(sample.row, plan.ending) | {"encoding_format": "float"}
            )
            vector = np.asarray(answer["data"][0]["embedding"], np.float32)
            found.append(float(vector @ sample.vector / max(float(np.linalg.norm(vector)), 1e-12)))
    return found


def _routes(plan: Plan, directory: Path, samples: list[Sample]) -> list[bool]:
    # told, since vLLM takes a directory with sentence-transformers' modules.json for a pooling model
    with ManagedServer(server_config(plan, directory, "--runner", "generate")) as server:
        found = []
        for sample in samples:
            body = _messages(sample.row, "") | {"max_tokens": 1, "temperature": 0, "skip_special_tokens": False}
            answer = _ask(f"{server.endpoint.url}/chat/completions", body)
            found.append((EMB_TOKEN in (answer["choices"][0]["message"]["content"] or "")) == sample.direct)
    return found


def _messages(row: EncodedSequence, ending: str) -> dict[str, Any]:
    """The row as a chat request: its prompt, and what is written after it as the beginning of the reply."""
    pictures = iter([picture for picture in row.pictures if isinstance(picture, Image.Image)])  # a sample's are decoded
    content: list[dict[str, Any]] = []
    for part in row.prompt:
        if isinstance(part, ImageSlot):
            content.append({"type": "image_url", "image_url": {"url": _data_url(next(pictures))}})
        else:
            content.append({"type": "text", "text": part})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    reply = row.written + ending
    if reply:
        messages.append({"role": "assistant", "content": reply})
    return {
        "model": "embedder",
        "messages": messages,
        "add_generation_prompt": not reply,
        "continue_final_message": bool(reply),
    }


def _data_url(picture: Image.Image) -> str:
    """Without loss: the server must see the same pixels."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with opened(request, timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
