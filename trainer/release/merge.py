"""Exports an embedder as whole weights that any server for its model family can load, after checking them.

The export is written only if, on queries and candidates with and without images, and on queries with traces,

1. the embeddings of a real vLLM pooling server have a cosine of at least 0.999 with those of the trained adapter, and
2. the first token that a real vLLM generation server decodes greedily, the route, is the adapter's.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.files.atomic_directory import replace_directory, staging_path
from pipeline.serving.server import ManagedServer
from prompts import ImageSlot
from schemas.errors import ConfigError, CotError
from schemas.hosting import ServerConfig
from schemas.record import EMB_TOKEN
from schemas.training import AdaptiveSettings
from trainer.data.encoding import EncodedSequence
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.bidirectional_attention import refuse_unservable
from trainer.model.embedder import Embedder
from trainer.model.whole_weights import write_weights
from trainer.release.checking_server import ADVICE, ask
from trainer.release.sentence_transformers import write_modules

COSINE: Final = 0.999
EVEN: Final = {"bfloat16": 0.25, "float32": 0.001}
"""Log odds below which rounding decides a route. A logit between 16 and 32 has steps of 0.125 in bfloat16, and two logits are
compared."""
REPORT: Final = "merge_report.json"
POOLING: Final = (
    "--runner", "pooling", "--convert", "embed",
    "--pooler-config", json.dumps({"seq_pooling_type": "LAST", "use_activation": True}),
)  # fmt: skip
"""Arguments of a vLLM server that embeds with an export."""
_MAX_LENGTH: Final = 8192
_MOST: Final = 0.92
"""Largest share of a GPU's memory for vLLM."""
_SPARE: Final = 0.02
"""Share of the memory that is left free: for this process's context, and for changes between our query and vLLM's."""


class MergeError(CotError):
    """An export that differs from the trained embedder. Nothing is written."""


class Sample(NamedTuple):
    """A sequence with the adapter's own results. direct: whether its route is a bypass; only meaningful for a query."""

    sequence: EncodedSequence
    query: bool
    direct: bool
    vector: np.ndarray[Any, np.dtype[np.float32]]
    p_direct: float = 0.0


class Agreement(NamedTuple):
    """How the export compares with the adapter: the contents of `merge_report.json`."""

    samples: int
    least_cosine: float
    routes: int
    routes_equal: int
    even: tuple[str, ...] = ()
    """Queries whose routes differ only by rounding (see `EVEN`)."""


def merge(
    embedder: Embedder,
    queries: list[EncodedSequence],
    candidates: list[EncodedSequence],
    out: Path,
    *,
    settings: AdaptiveSettings,
    card: str = "",
    progress: Callable[[str], None] = lambda line: None,
) -> Agreement:
    """Writes `out`, or raises MergeError and leaves nothing.

    card: its README.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists", "name another directory, or remove it")
    refuse_unservable(embedder.metadata)
    samples = list(_make_samples(embedder, queries, candidates, settings))
    new = staging_path(out)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write_whole(embedder, new, card)
        plan = plan_servers(embedder)
        _free_memory(embedder)
        agreement = _check(plan, new, samples, progress)
        (new / REPORT).write_text(json.dumps(agreement._asdict(), indent=1) + "\n", encoding="utf-8")
        replace_directory(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return agreement


def _check(plan: ServerPlan, directory: Path, samples: list[Sample], progress: Callable[[str], None]) -> Agreement:
    """Raises MergeError unless two vLLM servers agree with the adapter."""
    progress("starting a pooling server")
    least = float(np.min(list(_compare_embeddings(plan, directory, samples))))
    if not least >= COSINE:  # also refuses NaN
        raise MergeError(
            f"the export is not what was trained: least cosine {least:.5f} (at least {COSINE}); nothing was written", ADVICE
        )
    progress("starting a generating server")
    queries = [sample for sample in samples if sample.query]
    same = _compare_routes(plan, directory, queries)
    even, wrong = sort_disagreements(queries, same, plan.dtype)
    if wrong:
        raise MergeError(
            f"the export is not what was trained: {sum(same)} of {len(queries)} routes equal "
            f"({len(even)} of the others are even to within rounding); nothing was written",
            ADVICE,
        )
    return Agreement(len(samples), least, len(queries), sum(same), tuple(even))


def sort_disagreements(samples: list[Sample], same: list[bool], dtype: str) -> tuple[list[str], list[str]]:
    """Names of the queries with other routes: (those that rounding decides, the others)."""
    even: list[str] = []
    wrong: list[str] = []
    for sample, agrees in zip(samples, same, strict=True):
        if not agrees:
            p = min(max(sample.p_direct, 1e-9), 1 - 1e-9)
            (even if abs(math.log(p / (1 - p))) <= EVEN[dtype] else wrong).append(sample.sequence.name)
    return even, wrong


def _make_samples(
    embedder: Embedder, queries: list[EncodedSequence], candidates: list[EncodedSequence], settings: AdaptiveSettings
) -> Iterator[Sample]:
    """The queries, the same with the traces that the student writes for them, and the candidates."""
    adaptive = AdaptiveEmbedder(embedder, settings)
    learned = adaptive.embed(queries, route="learned")
    written = adaptive.embed(queries, route="always-reason")
    traced = [
        EncodedSequence(query.name, query.prompt, query.pictures, embedding.trace.strip())
        for query, embedding in zip(queries, written, strict=True)
    ]
    plain = [*queries, *(sequence for sequence in traced if sequence.written), *candidates]
    with torch.inference_mode():
        for i, sequence in enumerate(plain):
            vectors_BD, _ = embedder(embedder.encoder().make_chunk([sequence]).to(embedder.device), labelled=False)
            is_query = i < len(queries)
            direct = is_query and not learned[i].reasoned
            p_direct = learned[i].p_direct if is_query else 0.0
            yield Sample(sequence, is_query, direct, vectors_BD[0].float().cpu().numpy(), p_direct)


def write_whole(embedder: Embedder, directory: Path, card: str = "") -> None:
    """Writes whole weights, processor, metadata, the files of sentence-transformers, and the card."""
    write_weights(embedder, directory)
    write_modules(embedder, directory)
    if card:
        (directory / "README.md").write_text(card, encoding="utf-8")


class ServerPlan(NamedTuple):
    """Settings of the servers that check an export."""

    device: torch.device
    dtype: Literal["bfloat16", "float32"]
    max_model_len: int
    ending: str
    """Text appended to a sequence before its state is pooled."""


def plan_servers(embedder: Embedder) -> ServerPlan:
    text = embedder.model.config.get_text_config()
    return ServerPlan(
        embedder.device,
        "bfloat16" if embedder.model.dtype == torch.bfloat16 else "float32",
        min(_MAX_LENGTH, text.max_position_embeddings),
        EMB_TOKEN if embedder.metadata.pool == "token" else "",
    )


def _free_memory(embedder: Embedder) -> None:
    """Moves the embedder off the GPU: the servers need its memory, and the samples are computed."""
    if embedder.device.type == "cuda":
        embedder.to("cpu")
        torch.cuda.empty_cache()


def _memory_share(device: torch.device) -> float:
    """vLLM's share of the GPU's memory: it refuses to start if less is free, and other programs may use some."""
    free, total = torch.cuda.mem_get_info(device)
    share = math.floor(min(_MOST, free / total - _SPARE) * 100) / 100
    if share <= 0:
        raise ConfigError(
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free on {device}: too little for the server of the export",
            "end what else uses that GPU, or name another in CUDA_VISIBLE_DEVICES",
        )
    return share


def server_config(plan: ServerPlan, directory: Path, *more: str) -> ServerConfig:
    """Settings of a server for the export in `directory`. more: arguments of its command line."""
    on_gpu = plan.device.type == "cuda"
    memory = {"gpu_memory_utilization": _memory_share(plan.device)} if on_gpu else {}
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


def _compare_embeddings(plan: ServerPlan, directory: Path, samples: list[Sample]) -> list[float]:
    """Each sample's cosine between the server's embedding and the adapter's."""
    with ManagedServer(server_config(plan, directory, *POOLING)) as server:
        cosines = []
        for sample in samples:
            answer = ask(server, "/embeddings", chat_request(sample.sequence, plan.ending) | {"encoding_format": "float"})
            vector = np.asarray(answer["data"][0]["embedding"], np.float32)
            cosines.append(float(vector @ sample.vector / max(float(np.linalg.norm(vector)), 1e-12)))
    return cosines


def _compare_routes(plan: ServerPlan, directory: Path, samples: list[Sample]) -> list[bool]:
    """Whether each query's route is the adapter's."""
    # the runner is given because vLLM takes a directory with sentence-transformers' modules.json for a pooling model
    with ManagedServer(server_config(plan, directory, "--runner", "generate")) as server:
        same = []
        for sample in samples:
            body = chat_request(sample.sequence, "") | {"max_tokens": 1, "temperature": 0, "skip_special_tokens": False}
            answer = ask(server, "/chat/completions", body)
            same.append((EMB_TOKEN in (answer["choices"][0]["message"]["content"] or "")) == sample.direct)
    return same


def chat_request(sequence: EncodedSequence, ending: str) -> dict[str, Any]:
    """The sequence as a chat request for a server of an export: its prompt, and what follows as the start of the reply.

    ending: the plan's, for a vector; "" for the next token.
    """
    pictures = iter(
        [picture for picture in sequence.pictures if isinstance(picture, Image.Image)]
    )  # those of samples are decoded
    content: list[dict[str, Any]] = []
    for part in sequence.prompt:
        if isinstance(part, ImageSlot):
            content.append({"type": "image_url", "image_url": {"url": _data_url(next(pictures))}})
        else:
            content.append({"type": "text", "text": part})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    reply = sequence.written + ending
    if reply:
        messages.append({"role": "assistant", "content": reply})
    return {
        "model": "embedder",
        "messages": messages,
        "add_generation_prompt": not reply,
        "continue_final_message": bool(reply),
    }


def _data_url(picture: Image.Image) -> str:
    """Lossless: the server must get the same pixels."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
