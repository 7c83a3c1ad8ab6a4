"""Adaptive embedding: a query that needs no trace costs one prefill; only the others decode on.

1. A batch of queries is prefilled. The state at the last position of each is its bypass embedding *and* predicts its first
   token: where that is the embedding token, the query is done.
2. The rest join the lanes: queries that are writing their traces, each with its keys and values. Lanes advance by one token
   together; a lane whose next token is the embedding token is done, its embedding the state that predicted it, and leaves.
   New queries are prefilled whenever there is room, so lanes stay full until the end.
3. A trace that has not ended within the limit, or ends the turn instead, is cut: its embedding is the state where it stands.
   Such traces are counted (`ended` is false).

Positions are passed explicitly and padding is masked, so neither neighbours nor padding change an embedding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from schemas.training import AdaptiveSettings, RouteChoice
from trainer.data.encoding import EncodedSequence, SequenceEncoder
from trainer.model.embedder import Embedder, pooled

_NEVER: Final = torch.finfo(torch.float32).min


class QueryEmbedding(NamedTuple):
    """A query's embedding and how it came about.

    vector: (dim,), unit length, float32, on CPU.
    p_direct: probability of the embedding token as the first token: the route's own confidence.
    tokens: written before the embedding token.
    seconds: from the start of its prefill to its embedding.
    bypass: with `pre` pooling, what a query that reasoned would have been without its trace; its prefill computes that anyway.
    bypass_seconds: from the start of its prefill to that.
    """

    vector: Tensor
    reasoned: bool
    ended: bool
    trace: str
    p_direct: float
    tokens: int
    seconds: float
    bypass: Tensor | None = None
    bypass_seconds: float = 0.0


@dataclass(slots=True)
class DecodeBatch:
    """Queries in mid-trace.

    keys, values: per layer (lanes, heads, length, dim); mask: (lanes, length), 0 at padding.
    position: (lanes, 1) of the next token; token: (lanes,) that is fed next.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    position: Tensor
    token: Tensor
    owner: list[int]
    written: list[list[int]]
    began: list[float]
    closing: list[bool]
    """With `token` pooling: the embedding token is fed, its state will be the embedding."""
    ended: list[bool]
    p_direct: list[float]
    bypass: list[Tensor]
    """(dim,), on CPU."""
    bypass_seconds: list[float]

    def __len__(self) -> int:
        return len(self.owner)

    def take(self, kept: list[int]) -> DecodeBatch:
        at = torch.tensor(kept, device=self.mask.device)
        states = (self.owner, self.written, self.began, self.closing, self.ended)
        lists = (*states, self.p_direct, self.bypass, self.bypass_seconds)
        mask = self.mask[at]
        used = mask.any(0).nonzero()
        length = int(used.max()) + 1 if len(used) else 0
        return DecodeBatch(
            [k[at, :, :length] for k in self.keys],
            [v[at, :, :length] for v in self.values],
            mask[:, :length],
            self.position[at],
            self.token[at],
            *([each[i] for i in kept] for each in lists),  # type: ignore[arg-type]
        )

    def join(self, other: DecodeBatch) -> DecodeBatch:
        length = max(self.mask.shape[1], other.mask.shape[1])

        def wide(tensor: Tensor, dim: int) -> Tensor:
            missing = length - tensor.shape[dim]
            if not missing:
                return tensor
            shape = list(tensor.shape)
            shape[dim] = missing
            return torch.cat([tensor, tensor.new_zeros(shape)], dim)

        def both(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
            return [torch.cat([wide(x, 2), wide(y, 2)]) for x, y in zip(a, b, strict=True)]

        return DecodeBatch(
            both(self.keys, other.keys),
            both(self.values, other.values),
            torch.cat([wide(self.mask, 1), wide(other.mask, 1)]),
            torch.cat([self.position, other.position]),
            torch.cat([self.token, other.token]),
            self.owner + other.owner,
            self.written + other.written,
            self.began + other.began,
            self.closing + other.closing,
            self.ended + other.ended,
            self.p_direct + other.p_direct,
            self.bypass + other.bypass,
            self.bypass_seconds + other.bypass_seconds,
        )


class AdaptiveEmbedder:
    """Embeds queries with one student. Not thread-safe."""

    def __init__(self, embedder: Embedder, settings: AdaptiveSettings, encoder: SequenceEncoder | None = None) -> None:
        self.embedder, self.settings = embedder, settings
        self.encoder = encoder or embedder.encoder()
        tokenizer = embedder.processor.tokenizer
        generation = getattr(embedder.model, "generation_config", None)
        stops = getattr(generation, "eos_token_id", None)
        self._stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
        self._emb = embedder.emb_id

    def embed(
        self, rows: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> list[QueryEmbedding]:
        """In the order of `rows`. `given`: which of them reason, for ``route="given"``."""
        found: list[QueryEmbedding | None] = [None] * len(rows)
        for index, one in self.stream(rows, route=route, given=given):
            found[index] = one
        return [one for one in found if one is not None]

    @torch.inference_mode()
    def stream(
        self, rows: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index, result) as they are done."""
        route = route or self.settings.route
        if route == "given" and (given is None or len(given) != len(rows)):
            raise ValueError("route 'given' needs one flag per row")
        self.embedder.eval()
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].pictures), sum(len(str(p)) for p in rows[i].prompt)))
        lanes: DecodeBatch | None = None
        for start in range(0, len(order), self.settings.prefill_rows):
            part = order[start : start + self.settings.prefill_rows]
            forced = None if route == "learned" else [self._forced(route, given, i) for i in part]
            done, new = self._prefill([rows[i] for i in part], part, forced)
            yield from done
            if new is not None:
                lanes = new if lanes is None else lanes.join(new)
            while lanes is not None and len(lanes) >= self.settings.decode_rows:
                done, lanes = self._advance(lanes)
                yield from done
        while lanes is not None:
            done, lanes = self._advance(lanes)
            yield from done

    @staticmethod
    def _forced(route: RouteChoice, given: Sequence[bool] | None, index: int) -> bool:
        return given[index] if route == "given" and given is not None else route == "always-reason"

    def _prefill(
        self, rows: Sequence[EncodedSequence], owners: list[int], forced: list[bool] | None
    ) -> tuple[list[tuple[int, QueryEmbedding]], DecodeBatch | None]:
        began = time.perf_counter()
        chunk = self.encoder.chunk(rows, prompts_only=True).to(self.embedder.device)
        # what is written after a row goes on after its last position
        following = chunk.inputs["position_ids"].amax((0, 2)).unsqueeze(1) + 1
        cache = DynamicCache()
        with self.embedder.casting():
            states = self.embedder.model.model(**chunk.inputs, past_key_values=cache, use_cache=True).last_hidden_state
        vectors = pooled(states, chunk.last)
        logits = self._logits(states[torch.arange(len(rows)), chunk.last])
        p_direct = logits.softmax(-1)[:, self._emb].tolist()
        tokens = logits.argmax(-1)
        if forced is not None:
            without = logits.clone()
            without[:, [self._emb, *self._stops]] = _NEVER
            reasons = torch.tensor(forced, device=logits.device)
            tokens = torch.where(reasons, without.argmax(-1), torch.full_like(tokens, self._emb))
        picked, now, kept = tokens.tolist(), time.perf_counter(), vectors.cpu()
        done, on = [], []
        for i, token in enumerate(picked):
            if self.embedder.identity.pool == "pre" and (token == self._emb or token in self._stops):
                done.append((owners[i], QueryEmbedding(kept[i], False, token == self._emb, "", p_direct[i], 0, now - began)))
            else:
                on.append(i)
        if not on:
            return done, None
        lanes = DecodeBatch(
            [layer.keys for layer in cache.layers],
            [layer.values for layer in cache.layers],
            chunk.inputs["attention_mask"],
            following,
            tokens,
            list(owners),
            [[] for _ in rows],
            [began] * len(rows),
            [False] * len(rows),
            [True] * len(rows),
            p_direct,
            list(kept),
            [now - began] * len(rows),
        ).take(on)
        self._classify_next_tokens(lanes)
        return done, lanes

    def _classify_next_tokens(self, lanes: DecodeBatch) -> None:
        """Looks at each lane's next token: a word of its trace, or the end of it."""
        for i, token in enumerate(lanes.token.tolist()):
            if lanes.closing[i]:
                continue
            over = token != self._emb and (token in self._stops or len(lanes.written[i]) >= self.settings.max_new_tokens)
            if token == self._emb or over:
                lanes.closing[i] = True
                lanes.ended[i] = not over
                lanes.token[i] = self._emb
            else:
                lanes.written[i].append(token)

    def _advance(self, lanes: DecodeBatch) -> tuple[list[tuple[int, QueryEmbedding]], DecodeBatch | None]:
        """Feeds every lane's next token; lanes that are done leave."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(lanes.keys, lanes.values, strict=True)):
            cache.update(keys, values, layer)
        mask = torch.cat([lanes.mask, lanes.mask.new_ones(len(lanes), 1)], 1)
        with self.embedder.casting():
            states = self.embedder.model.model(
                input_ids=lanes.token.unsqueeze(1),
                attention_mask=mask,
                position_ids=lanes.position.unsqueeze(0).expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        vectors = pooled(states, torch.zeros(len(lanes), dtype=torch.long, device=states.device))
        was_closing = list(lanes.closing)
        lanes.keys = [layer.keys for layer in cache.layers]
        lanes.values = [layer.values for layer in cache.layers]
        lanes.mask = mask
        lanes.position = lanes.position + 1
        lanes.token = self._logits(states[:, 0]).argmax(-1)
        self._classify_next_tokens(lanes)
        pre = self.embedder.identity.pool == "pre"
        over = [i for i in range(len(lanes)) if (lanes.closing[i] if pre else was_closing[i])]
        if not over:
            return [], lanes
        now, kept = time.perf_counter(), vectors.cpu()
        done = [(lanes.owner[i], self._result(lanes, i, kept[i], now)) for i in over]
        rest = sorted(set(range(len(lanes))) - set(over))
        return done, lanes.take(rest) if rest else None

    def _result(self, lanes: DecodeBatch, i: int, vector: Tensor, now: float) -> QueryEmbedding:
        written = lanes.written[i]
        text: str = self.embedder.processor.tokenizer.decode(written, skip_special_tokens=True)
        seconds = now - lanes.began[i]
        found = QueryEmbedding(vector, bool(written), lanes.ended[i], text, lanes.p_direct[i], len(written), seconds)
        if self.embedder.identity.pool != "pre" or not written:
            return found
        return found._replace(bypass=lanes.bypass[i], bypass_seconds=lanes.bypass_seconds[i])

    def _logits(self, states: Tensor) -> Tensor:
        with self.embedder.casting():
            logits: Tensor = self.embedder.head(states)
        return logits.float()
