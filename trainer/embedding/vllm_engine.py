"""Adaptive embedding by vLLM: one engine writes the traces and gives the embeddings, from the same request.

A query is one request that ends with the embedding token. vLLM computes the state that predicts a token in any case; it is kept
for every request (`state_keeper`) and taken when the request is done. So a bypassed query costs its prefill, a query that
reasons its prefill and its tokens, a candidate its prefill, and there is one copy of the weights. On a GPU the engine has
processes of its own, which end with `close` or with this process.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from schemas.errors import CotError, InputError
from schemas.training import AdaptiveSettings, RouteChoice
from trainer.data.encoding import EncodedSequence
from trainer.embedding.adaptive import QueryEmbedding, stop_tokens
from trainer.embedding.vllm_inputs import InputMaker
from trainer.model.embedder import Embedder

logger = logging.getLogger(__name__)

_MAX_LENGTH: Final = 8192
_MOST_IMAGES: Final = 8
_GROUP: Final = 32
"""Rows whose inputs are made together."""
_ENVIRONMENT: Final = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `state_keeper` is written for the first one's logits processors
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_DEFAULTS: Final = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""For what the user has not set."""
_ON_GPU: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
"""Processes of its own: images are prepared meanwhile, and the GPU's memory is free when they have ended."""
_ON_CPU: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""In this process: it starts in a third of the time."""


class EngineError(CotError):
    """vLLM does not start, or has died."""


class _Finished(NamedTuple):
    """tokens: all that the request wrote, its last one included. Times in seconds of one clock."""

    tokens: list[int]
    last: Tensor
    first: Tensor
    p_direct: float
    cut: bool
    began: float
    first_at: float
    last_at: float


class VllmEngine:
    """Embeds with a student's whole weights. Not thread-safe. It has `AdaptiveEmbedder`'s interface."""

    def __init__(
        self,
        directory: Path,
        embedder: Embedder,
        settings: AdaptiveSettings,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gpu: bool = False,
        seed: int = 0,
    ) -> None:
        """directory: whole weights. embedder: the same without its weights (``weights=False``)."""
        self.settings, self.encoder = settings, embedder.encoder()
        self._inputs = InputMaker(self.encoder)
        self._tokenizer, self._emb = embedder.processor.tokenizer, embedder.emb_id
        self._stops = sorted(stop_tokens(self._tokenizer, GenerationConfig.from_pretrained(directory)))
        self._token = embedder.metadata.pool == "token"
        self._keys = map(str, itertools.count())
        self._waiting: set[str] = set()
        text = embedder.model.config.get_text_config()
        self.dim: int = text.hidden_size
        self.options: dict[str, Any] = {
            "model": str(directory),
            "runner": "generate",  # vLLM takes a directory with sentence-transformers' modules.json for a pooling model
            "dtype": dtype,
            "seed": seed,
            "max_model_len": min(_MAX_LENGTH, text.max_position_embeddings),
            "max_num_seqs": settings.decode_rows,
            "limit_mm_per_prompt": {"image": _MOST_IMAGES, "video": 0},
            "mm_device_do_normalize": self._inputs.sends_bytes,
            "mm_processor_cache_gb": 0,  # its image processor is not used
            "generation_config": "vllm",
            "enforce_eager": not gpu,
            "async_scheduling": False,  # with it, a step may run past a request's end
            "disable_log_stats": True,
            "logits_processors": ["trainer.embedding.state_keeper:StateKeeper"],
            "worker_extension_cls": "trainer.embedding.state_keeper.StatesWorker",
        }
        self._engine = start_engine(self.options, _ON_GPU if gpu else _ON_CPU)
        self._engine.collective_rpc("keep_states")

    def close(self) -> None:
        """Ends the engine's processes. May be called again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()

    def embed(
        self, rows: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> list[QueryEmbedding]:
        """In the order of `rows`. `given`: whether each reasons, for ``route="given"``."""
        by_index = dict(self.stream(rows, route=route, given=given))
        return [by_index[index] for index in range(len(rows))]

    def stream(
        self, rows: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index in `rows`, embedding), as they are done."""
        route = route or self.settings.route
        if route == "given" and (given is None or len(given) != len(rows)):
            raise ValueError("route 'given' needs one flag per row")
        reasons: Sequence[bool | None] = [None if route == "learned" else route == "always-reason"] * len(rows)
        if route == "given" and given is not None:
            reasons = given
        requests = zip(self._make_inputs(rows, prompts_only=True), reasons, strict=True)
        for index, done in self._run(requests):
            yield index, self._embedding(done)

    def embed_written(self, rows: Sequence[EncodedSequence], size: int = _GROUP) -> Tensor:
        """(n, dim): the embeddings of rows after the text that they carry; the student writes nothing."""
        vectors_ND = torch.zeros(len(rows), self.dim)
        for index, vector_D in self.stream_inputs(self._make_inputs(rows, prompts_only=False)):
            vectors_ND[index] = vector_D
        return vectors_ND

    def make_inputs(self, rows: Sequence[EncodedSequence]) -> list[Any]:
        """Requests for `stream_inputs`; may be called in another thread."""
        return self._inputs.make(rows, prompts_only=False) if rows else []

    def stream_inputs(self, inputs: Iterable[Any]) -> Iterator[tuple[int, Tensor]]:
        """(index in `inputs`, embedding of unit length), as they are done."""
        for index, done in self._run(((one, None) for one in inputs), one_token=True):
            yield index, _normalise(done.first)

    def _make_inputs(self, rows: Sequence[EncodedSequence], *, prompts_only: bool) -> Iterator[Any]:
        for start in range(0, len(rows), _GROUP):
            yield from self._inputs.make(rows[start : start + _GROUP], prompts_only=prompts_only)

    def _run(self, requests: Iterable[tuple[Any, bool | None]], *, one_token: bool = False) -> Iterator[tuple[int, _Finished]]:
        """Keeps the engine's batch full. requests: (inputs, whether it reasons)."""
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415 (heavy)

        self._abort()  # what a caller that stopped early has left
        waiting, index_of = enumerate(requests), dict[str, int]()
        most = self.settings.decode_rows + self.settings.prefill_rows
        try:
            while True:
                for index, (inputs, reason) in itertools.islice(waiting, most - len(index_of)):
                    key = next(self._keys)
                    index_of[key] = index
                    self._add(key, inputs, self._params(key, reason, one_token=one_token))
                if not index_of:
                    return
                for done in self._step():
                    yield index_of.pop(done[0]), done[1]
        except EngineDeadError as error:
            raise EngineError(
                "vLLM's engine has died while it embedded; what it printed is above",
                "run again (finished parts are kept), with less memory in use, or with adaptive.engine=transformers",
            ) from error

    def _add(self, key: str, inputs: Any, params: Any) -> None:
        from vllm.exceptions import VLLMError  # noqa: PLC0415 (heavy)

        try:
            self._engine.add_request(key, inputs, params)
        except (VLLMError, ValueError) as error:
            length, cause = len(inputs["prompt_token_ids"]), str(error).splitlines()[0]
            raise InputError(
                f"vLLM refuses a query or candidate of {length:,} tokens: {cause}",
                "lower data.max_candidate_chars or model.max_pixels, or set adaptive.engine=transformers",
            ) from error
        self._waiting.add(key)

    def _step(self) -> list[tuple[str, _Finished]]:
        finished = [output for output in self._engine.step() if output.finished]
        if not finished:
            return []
        keys = [output.request_id for output in finished]
        *states, scalars = self._engine.collective_rpc("take_states", args=(keys,))[0]
        self._waiting.difference_update(keys)
        last_ND, first_ND = (torch.frombuffer(bytearray(one), dtype=torch.float32).view(len(keys), -1) for one in states)
        return [
            (key, _Finished(list(output.outputs[0].token_ids), last_ND[i], first_ND[i], *scalars[i]))
            for i, (key, output) in enumerate(zip(keys, finished, strict=True))
        ]

    def _abort(self) -> None:
        if self._waiting:
            self._engine.abort_request(list(self._waiting))
            self._engine.collective_rpc("drop_states", args=(sorted(self._waiting),))
            self._waiting.clear()

    def _params(self, key: str, reason: bool | None, *, one_token: bool) -> Any:
        from vllm import SamplingParams  # noqa: PLC0415 (heavy)
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        limit = self.settings.max_new_tokens
        wanted = {
            "key": key,
            "emb": self._emb,
            "stops": self._stops,
            "reason": reason,
            "limit": limit,
            "token": self._token and not one_token,
        }
        stops = self._stops if wanted["token"] else [self._emb, *self._stops]
        return SamplingParams(
            temperature=0.0,
            # the token after a full trace is still predicted: the state that predicts it is the embedding
            max_tokens=1 if one_token else limit + (2 if wanted["token"] else 1),
            stop_token_ids=stops,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"trace": wanted},
        )

    def _embedding(self, done: _Finished) -> QueryEmbedding:
        *written, end = done.tokens
        ended = end == self._emb
        if self._token:
            ended = not done.cut
            written = written[:-1]  # the embedding token, which was fed
        trace: str = self._tokenizer.decode(written, skip_special_tokens=True)
        bypass = None if self._token or not written else _normalise(done.first)
        return QueryEmbedding(
            vector=_normalise(done.last),
            reasoned=bool(written),
            ended=ended,
            trace=trace,
            p_direct=done.p_direct,
            tokens=len(written),
            seconds=done.last_at - done.began,
            bypass=bypass,
            bypass_seconds=done.first_at - done.began if bypass is not None else 0.0,
        )


def _normalise(state_D: Tensor) -> Tensor:
    return nn.functional.normalize(state_D.float(), dim=-1)


def start_engine(options: dict[str, Any], defaults: Mapping[str, str] = _ON_CPU) -> Any:
    """vLLM's engine. defaults: variables that the user may set. Raises EngineError with vLLM's own cause."""
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415 (heavy)
    from vllm.exceptions import VLLMError  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    logger.info("starts vLLM on %s", options["model"])
    try:
        with _environment({**_DEFAULTS, **defaults}):
            return LLMEngine.from_engine_args(EngineArgs(**options))
    except (VLLMError, RuntimeError, ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = " ".join(lines[:3])[:500] or type(error).__name__
        raise EngineError(
            f"vLLM does not start on {options['model']}: {cause}",
            "see what it printed above; adaptive.engine=transformers embeds without it",
        ) from error


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """For this engine only: the commands' own servers are told other things."""
    wanted = {**{name: value for name, value in defaults.items() if name not in os.environ}, **_ENVIRONMENT}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
