"""Adaptive embedding by vLLM: one engine writes the traces and gives the embeddings, from the same request.

A query is one request that ends with the embedding token. vLLM computes the state that predicts a token in any case; it is kept
for every request (`state_keeper`) and taken when the request is done. So a bypassed query costs its prefill, a query that
reasons its prefill and its tokens, a candidate its prefill, and there is one copy of the weights. On a GPU the engine has
processes of its own, which end with `close` or with this process.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from schemas.errors import InputError
from schemas.training import AdaptiveSettings, RouteChoice
from trainer.data.encoding import EncodedSequence
from trainer.embedding.query_embedding import QueryEmbedding, choose_to_reason, in_order
from trainer.embedding.trace_end import stop_tokens
from trainer.embedding.vllm_engine_start import ON_CPU, ON_GPU, EngineError, start_engine
from trainer.embedding.vllm_inputs import InputMaker
from trainer.model.embedder import Embedder

_MAX_LENGTH: Final = 8192
_MOST_IMAGES: Final = 8
_GROUP: Final = 32
"""Sequences whose inputs are made together."""


class _Said(NamedTuple):
    """What `StateKeeper.take` says of a request besides its states. Times in seconds of one clock."""

    p_direct: float
    cut: bool
    began: float
    first_at: float
    last_at: float
    confidence: float | None


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
        self.settings, self.encoder, self._gpu = settings, embedder.encoder(), gpu
        self._inputs = InputMaker(self.encoder)
        self._tokenizer, self._emb = embedder.processor.tokenizer, embedder.emb_id
        self._stops = sorted(stop_tokens(self._tokenizer, GenerationConfig.from_pretrained(directory)))
        self._token = embedder.metadata.pool == "token"
        self._keys = map(str, itertools.count())
        self._waiting: dict[str, int] = {}
        """Tokens of the prompts of the requests that are not done."""
        self.room = settings.decode_rows + settings.prefill_rows
        """Requests that keep its batch full and the next ones ready."""
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
        self._engine = start_engine(self.options, ON_GPU if gpu else ON_CPU)
        self._engine.collective_rpc("keep_states", args=(os.getpid(),))

    @property
    def has_processes(self) -> bool:
        """Whether it has processes of its own, which `close` ends."""
        return self._gpu

    def close(self) -> None:
        """Ends the engine's processes. May be called again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()

    def embed(
        self, sequences: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> list[QueryEmbedding]:
        """In the order of `sequences`. `given`: whether each reasons, for ``route="given"``."""
        return in_order(self.stream(sequences, route=route, given=given))

    def stream(
        self, sequences: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index in `sequences`, embedding), as they are done."""
        reasons = choose_to_reason(len(sequences), route or self.settings.route, given)
        yield from self._run(zip(self._make_inputs(sequences, prompts_only=True), reasons, strict=True))

    def embed_written(self, sequences: Sequence[EncodedSequence], size: int = _GROUP) -> Tensor:
        """(n, dim): the embeddings of sequences after the text that they carry; the student writes nothing."""
        vectors_ND = torch.zeros(len(sequences), self.dim)
        for index, one in self.stream_inputs(self._make_inputs(sequences, prompts_only=False)):
            vectors_ND[index] = one.vector
        return vectors_ND

    def make_inputs(self, sequences: Sequence[EncodedSequence], *, prompts_only: bool = False) -> list[Any]:
        """Requests for `stream_inputs` and `add`; may be called in another thread. `prompts_only`: of queries."""
        return self._inputs.make(sequences, prompts_only=prompts_only) if sequences else []

    def stream_inputs(self, inputs: Iterable[Any]) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index in `inputs`, embedding), as they are done; the student writes nothing."""
        yield from self._run(((one, None) for one in inputs), one_token=True)

    @property
    def busy(self) -> bool:
        """Whether a request is not done."""
        return bool(self._waiting)

    def add(self, inputs: Any, reason: bool | None = None, *, one_token: bool = False) -> str:
        """Adds a request to those that `step` advances: the key by which `step` names it.

        reason: whether it writes a trace; None for the student's own choice. one_token: of a candidate, which never does.

        Raises InputError if vLLM refuses it, EngineError if vLLM has died.
        """
        from vllm.exceptions import VLLMError  # noqa: PLC0415 (heavy)

        key, length = next(self._keys), len(inputs["prompt_token_ids"])
        try:
            with _death_told():
                self._engine.add_request(key, inputs, self._params(key, reason, one_token=one_token))
        except (VLLMError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise InputError(
                f"vLLM refuses a query or candidate of {length:,} tokens: {cause}",
                "lower data.max_candidate_chars or model.max_pixels, or set adaptive.engine=transformers",
            ) from error
        self._waiting[key] = length
        return key

    def step(self) -> list[tuple[str, QueryEmbedding]]:
        """Advances all requests by one token: those that are done. Raises EngineError if vLLM has died."""
        with _death_told():
            written = {
                output.request_id: list(output.outputs[0].token_ids) for output in self._engine.step() if output.finished
            }
            if not written:
                return []
            *states, scalars = self._engine.collective_rpc("take_states", args=(list(written),))[0]
        last_ND, first_ND = (torch.frombuffer(bytearray(one), dtype=torch.float32).view(len(written), -1) for one in states)
        done = zip(written.items(), last_ND, first_ND, scalars, strict=True)
        return [
            (key, self._embedding(self._waiting.pop(key), tokens, last_D, first_D, _Said(*rest)))
            for (key, tokens), last_D, first_D, rest in done
        ]

    def _make_inputs(self, sequences: Sequence[EncodedSequence], *, prompts_only: bool) -> Iterator[Any]:
        for start in range(0, len(sequences), _GROUP):
            yield from self._inputs.make(sequences[start : start + _GROUP], prompts_only=prompts_only)

    def _run(
        self, requests: Iterable[tuple[Any, bool | None]], *, one_token: bool = False
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """Keeps the engine's batch full. requests: (inputs, whether it reasons)."""
        self.abort(list(self._waiting))  # what a caller that stopped early has left
        waiting, index_of = enumerate(requests), dict[str, int]()
        while True:
            for index, (inputs, reason) in itertools.islice(waiting, self.room - len(index_of)):
                index_of[self.add(inputs, reason, one_token=one_token)] = index
            if not index_of:
                return
            for key, embedding in self.step():
                yield index_of.pop(key), embedding

    def abort(self, keys: Sequence[str]) -> None:
        """Ends these requests; `step` names them no more. Those that are done already are ignored."""
        left = [key for key in keys if key in self._waiting]
        if not left:
            return
        with _death_told():
            self._engine.abort_request(left)
            self._engine.collective_rpc("drop_states", args=(left,))
        for key in left:
            del self._waiting[key]

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

    def _embedding(self, prompt_tokens: int, tokens: list[int], last_D: Tensor, first_D: Tensor, said: _Said) -> QueryEmbedding:
        """tokens: all that the request wrote, its last one included."""
        *written, end = tokens
        ended = end == self._emb
        if self._token:
            ended = not said.cut
            written = written[:-1]  # the embedding token, which was fed
        bypass = None if self._token or not written else _normalise(first_D)
        return QueryEmbedding(
            vector=_normalise(last_D),
            reasoned=bool(written),
            ended=ended,
            trace=self._tokenizer.decode(written, skip_special_tokens=True) if written else "",
            p_direct=said.p_direct,
            tokens=len(written),
            seconds=said.last_at - said.began,
            bypass=bypass,
            bypass_seconds=said.first_at - said.began if bypass is not None else 0.0,
            prompt_tokens=prompt_tokens,
            confidence=said.confidence,
        )


def _normalise(state_D: Tensor) -> Tensor:
    return nn.functional.normalize(state_D.float(), dim=-1)


@contextmanager
def _death_told() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415 (heavy)

    try:
        yield
    except EngineDeadError as error:
        raise EngineError(
            "vLLM's engine has died while it embedded; what it printed is above",
            "run again (finished parts are kept), with less memory in use, or with adaptive.engine=transformers",
        ) from error
