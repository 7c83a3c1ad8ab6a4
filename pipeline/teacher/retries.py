"""Which answers of a server are worth another attempt, and how long to wait before it."""

from __future__ import annotations

import random
from typing import Final

from schemas.teacher import ClientConfig

CONGESTED_STATUS: Final = frozenset({429, 503})
"""They lower the number of requests in flight too (`concurrency_limit`), which waits as long as Retry-After says."""
_RETRIED_STATUS: Final = frozenset({408, 409, 425, 429})
"""Besides 5xx."""
_WORST_RETRY_AFTER_S: Final = 60.0


def is_retried(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in _RETRIED_STATUS or status >= 500


def draw_pause_s(attempt: int, config: ClientConfig) -> float:
    """Seconds to wait after this attempt, the first being 1: exponential, with full jitter."""
    most = min(config.backoff_cap_s, config.backoff_s * 2 ** (attempt - 1))
    return random.uniform(0, most)  # noqa: S311


def read_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; None for dates."""
    try:
        return min(_WORST_RETRY_AFTER_S, max(0.0, float(value))) if value else None
    except ValueError:
        return None
