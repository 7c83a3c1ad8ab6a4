"""Where a student's trace ends: at the embedding token, or cut before it. The rule is the same in transformers and in vLLM.

vLLM's own limits (`vllm_engine`: stop tokens, most tokens) only end the request; with `token` pooling `state_keeper` asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def is_cut(token: int, written: Sequence[int], *, emb: int, stops: Collection[int], limit: int) -> bool:
    """Whether the trace `written` so far must end although its student would go on with `token`.

    emb: the embedding token, with which a trace ends by itself. stops: tokens that end the turn. limit:
    `adaptive.max_new_tokens`.
    """
    return token != emb and (token in stops or len(written) >= limit)


def stop_tokens(tokenizer: Any, generation: Any) -> set[int]:
    """The tokens that end a turn. `generation`: a checkpoint's generation config."""
    stops = getattr(generation, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
