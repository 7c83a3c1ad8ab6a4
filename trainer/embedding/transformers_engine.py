"""Adaptive embedding: a query without a trace costs one prefill; only the others go on to decode.

1. A batch of queries is prefilled. The state at each query's last position is its bypass embedding *and* predicts its first
   token. If that is the embedding token, the query is done.
2. The others join the decode batch: queries that are writing their traces, one lane each, with their keys and values. All lanes
   advance by one token together. A lane whose next token is the embedding token is done: its embedding is the state that
   predicted the token, and it leaves the batch. New queries are prefilled whenever there is room, so the batch stays full
   until the end.
3. A trace that exceeds the limit, or ends the turn instead, is cut: its embedding is the state at its last token. Such traces
   are counted (`ended` is false).

Positions are passed explicitly and padding is masked, so neither neighbours nor padding change an embedding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor
from transformers import DynamicCache

from schemas.errors import ConfigError
from schemas.training import AdaptiveSettings, RouteChoice
from trainer.data.encoding import EncodedSequence, SequenceEncoder
from trainer.embedding.decode_batch import DecodeBatch, Lane
from trainer.embedding.query_embedding import QueryEmbedding, choose_to_reason, in_order
from trainer.embedding.trace_end import is_cut, stop_tokens
from trainer.model.embedder import Embedder, pool_states

_NEVER: Final = torch.finfo(torch.float32).min


class AdaptiveEmbedder:
    """Embeds queries with one student. Not thread-safe."""

    def __init__(self, embedder: Embedder, settings: AdaptiveSettings, encoder: SequenceEncoder | None = None) -> None:
        self.embedder, self.settings = embedder, settings
        self.encoder = encoder or embedder.encoder()
        self._stops = stop_tokens(embedder.processor.tokenizer, getattr(embedder.model, "generation_config", None))
        self._emb = embedder.emb_id
        self._pre = embedder.metadata.pool == "pre"

    def embed(
        self, sequences: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> list[QueryEmbedding]:
        """In the order of `sequences`. `given`: whether each reasons, for ``route="given"``."""
        return in_order(self.stream(sequences, route=route, given=given))

    @torch.inference_mode()
    def stream(
        self, sequences: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index in `sequences`, embedding), as they are done."""
        reasons = choose_to_reason(len(sequences), route or self.settings.route, given)
        self.embedder.eval()
        if not self.embedder.metadata.writes:
            if route == "always-reason" or (given is not None and any(given)):
                raise ConfigError("this embedder writes no traces (attends both ways, or mean pooling)", "route: always-direct")
            yield from self._embed_at_once(sequences)
            return
        order = sorted(
            range(len(sequences)), key=lambda i: (len(sequences[i].pictures), sum(len(str(p)) for p in sequences[i].prompt))
        )
        batch: DecodeBatch | None = None
        for start in range(0, len(order), self.settings.prefill_rows):
            part = order[start : start + self.settings.prefill_rows]
            done, joining = self._prefill([sequences[i] for i in part], part, [reasons[i] for i in part])
            yield from done
            if joining is not None:
                batch = joining if batch is None else batch.join(joining)
            while batch is not None and len(batch) >= self.settings.decode_rows:
                done, batch = self._advance(batch)
                yield from done
        while batch is not None:
            done, batch = self._advance(batch)
            yield from done

    @torch.inference_mode()
    def embed_written(self, sequences: Sequence[EncodedSequence], size: int) -> Tensor:
        """(n, dim): the embeddings of sequences after the text that they carry; the student writes nothing."""
        self.embedder.eval()
        vectors_ND = torch.zeros(len(sequences), self.embedder.model.config.get_text_config().hidden_size)
        for chunk in self.encoder.make_chunks(sequences, size, 1 << 20) if sequences else []:
            vectors_BD, _ = self.embedder(chunk.to(self.embedder.device), labelled=False)
            vectors_ND[chunk.places] = vectors_BD.cpu()
        return vectors_ND

    def _embed_at_once(self, sequences: Sequence[EncodedSequence]) -> Iterator[tuple[int, QueryEmbedding]]:
        """All sequences, by an embedder that writes no traces."""
        began = time.perf_counter()
        for chunk in self.encoder.make_chunks(sequences, self.settings.prefill_rows, 1 << 20) if sequences else []:
            vectors_BD, _ = self.embedder(chunk.to(self.embedder.device), labelled=False)
            now, lengths = time.perf_counter(), chunk.inputs["attention_mask"].sum(1).tolist()
            for place, vector_D, length in zip(chunk.places.tolist(), vectors_BD.cpu(), lengths, strict=True):
                yield place, QueryEmbedding(vector_D, False, True, "", 1.0, 0, now - began, prompt_tokens=length)
            began = time.perf_counter()

    def _prefill(
        self, sequences: Sequence[EncodedSequence], indices: list[int], reasons: list[bool | None]
    ) -> tuple[list[tuple[int, QueryEmbedding]], DecodeBatch | None]:
        """(queries that are done, queries that go on). reasons: see `choose_to_reason`."""
        began = time.perf_counter()
        chunk = self.encoder.make_chunk(sequences, prompts_only=True).to(self.embedder.device)
        # the next token's position follows the sequence's last one
        position_B1 = chunk.inputs["position_ids"].amax((0, 2)).unsqueeze(1) + 1
        cache = DynamicCache()
        with self.embedder.casting():
            states_BLD = self.embedder.model.model(**chunk.inputs, past_key_values=cache, use_cache=True).last_hidden_state
        vectors_BD = pool_states(states_BLD, chunk.last)
        logits_BV = self._logits(states_BLD[torch.arange(len(sequences)), chunk.last])
        p_direct = logits_BV.softmax(-1)[:, self._emb].tolist()
        token_B, log_p_B = self._first_tokens(logits_BV, reasons)
        lengths = (chunk.last + 1).tolist()
        first, now, vectors_BD = token_B.tolist(), time.perf_counter(), vectors_BD.cpu()
        done, going_on = [], []
        for i, token in enumerate(first):
            if self._pre and (token == self._emb or token in self._stops):
                ended = token == self._emb
                one = QueryEmbedding(vectors_BD[i], False, ended, "", p_direct[i], 0, now - began, prompt_tokens=lengths[i])
                done.append((indices[i], one))
            else:
                going_on.append(i)
        if not going_on:
            return done, None
        batch = DecodeBatch(
            keys=[layer.keys for layer in cache.layers],
            values=[layer.values for layer in cache.layers],
            mask=chunk.inputs["attention_mask"],
            position=position_B1,
            token=token_B,
            log_p=log_p_B,
            lanes=[
                Lane(indices[i], [], [], began, p_direct[i], vectors_BD[i], now - began, lengths[i])
                for i in range(len(sequences))
            ],
            closing=[False] * len(sequences),
            ended=[True] * len(sequences),
        ).select(going_on)
        self._classify_next_tokens(batch)
        return done, batch

    def _first_tokens(self, logits_BV: Tensor, reasons: list[bool | None]) -> tuple[Tensor, Tensor]:
        """(first tokens, their log-probabilities among those that begin a trace), each (sequences,)."""
        words_BV = logits_BV.clone()
        words_BV[:, [self._emb, *self._stops]] = _NEVER
        always_B, never_B = (
            torch.tensor([one is wanted for one in reasons], device=logits_BV.device) for wanted in (True, False)
        )
        token_B = logits_BV.argmax(-1).masked_fill(never_B, self._emb)
        token_B = torch.where(always_B, words_BV.argmax(-1), token_B)
        return token_B, _log_p(words_BV, token_B)

    def _classify_next_tokens(self, batch: DecodeBatch) -> None:
        """Decides for each lane whether its next token continues the trace or ends it."""
        for i, (token, log_p) in enumerate(zip(batch.token.tolist(), batch.log_p.tolist(), strict=True)):
            if batch.closing[i]:
                continue
            written = batch.lanes[i].written
            cut = is_cut(token, written, emb=self._emb, stops=self._stops, limit=self.settings.max_new_tokens)
            if token == self._emb or cut:
                batch.closing[i] = True
                batch.ended[i] = not cut
                batch.token[i] = self._emb
            else:
                written.append(token)
                batch.lanes[i].log_ps.append(log_p)

    def _advance(self, batch: DecodeBatch) -> tuple[list[tuple[int, QueryEmbedding]], DecodeBatch | None]:
        """Feeds every lane's next token: (queries that are done, the lanes that are left)."""
        cache = DynamicCache()
        for layer, (keys_BHLD, values_BHLD) in enumerate(zip(batch.keys, batch.values, strict=True)):
            cache.update(keys_BHLD, values_BHLD, layer)
        mask_BL = torch.cat([batch.mask, batch.mask.new_ones(len(batch), 1)], 1)
        with self.embedder.casting():
            states_BLD = self.embedder.model.model(
                input_ids=batch.token.unsqueeze(1),
                attention_mask=mask_BL,
                position_ids=batch.position.unsqueeze(0).expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        vectors_BD = pool_states(states_BLD, torch.zeros(len(batch), dtype=torch.long, device=states_BLD.device))
        was_closing = list(batch.closing)
        batch.keys = [layer.keys for layer in cache.layers]
        batch.values = [layer.values for layer in cache.layers]
        batch.mask = mask_BL
        batch.position = batch.position + 1
        logits_BV = self._logits(states_BLD[:, 0])
        batch.token = logits_BV.argmax(-1)
        batch.log_p = _log_p(logits_BV, batch.token)
        self._classify_next_tokens(batch)
        over = [i for i, is_over in enumerate(batch.closing if self._pre else was_closing) if is_over]
        if not over:
            return [], batch
        now, vectors_BD = time.perf_counter(), vectors_BD.cpu()
        done = [(batch.lanes[i].place, self._embedding(batch.lanes[i], batch.ended[i], vectors_BD[i], now)) for i in over]
        rest = sorted(set(range(len(batch))) - set(over))
        return done, batch.select(rest) if rest else None

    def _embedding(self, lane: Lane, ended: bool, vector: Tensor, now: float) -> QueryEmbedding:
        trace: str = self.embedder.processor.tokenizer.decode(lane.written, skip_special_tokens=True)
        count = len(lane.written)
        embedding = QueryEmbedding(
            vector, bool(count), ended, trace, lane.p_direct, count, now - lane.began, prompt_tokens=lane.prompt_tokens
        )
        if not count:
            return embedding
        embedding = embedding._replace(confidence=sum(lane.log_ps) / count)
        if not self._pre:
            return embedding
        return embedding._replace(bypass=lane.bypass, bypass_seconds=lane.bypass_seconds)

    def _logits(self, states_BD: Tensor) -> Tensor:
        with self.embedder.casting():
            logits_BV: Tensor = self.embedder.head(states_BD)
        return logits_BV.float()


def _log_p(logits_BV: Tensor, token_B: Tensor) -> Tensor:
    chosen_B: Tensor = logits_BV.gather(1, token_B.unsqueeze(1)).squeeze(1) - logits_BV.logsumexp(-1)
    return chosen_B
