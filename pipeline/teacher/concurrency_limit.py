"""How many requests an endpoint gets at once: additive increase, multiplicative decrease.

While the limit is used, it doubles with every window of successes until the server first objects (TCP's slow start); after that
it grows by one. It is halved, at most once per round trip, when the server is overloaded (429, 503) or takes too long. An
endpoint that refuses connections is left alone for a growing time and then probed by a single request.

A vLLM server also reports its load (`server_load`): the limit does not grow while requests wait there or the KV cache is nearly
full, and falls to this client's share of what is running when requests were preempted. From then on each report moves it half
the way to the number of requests that would fill the cache at their present mean size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

_DOWN_FIRST_S: Final = 0.25
_DOWN_MOST_S: Final = 15.0
_SMOOTHING: Final = 0.2
_USED: Final = 0.8
"""Share of the limit in use below which nothing is known about a higher one."""
_CALM_TRIPS: Final = 10
"""Round trips after a refusal in which the cache does not raise the limit: something else was short."""
_FULL: Final = 0.9
"""Share of the KV cache in use above which the limit does not grow: what runs now will still grow."""


@dataclass(slots=True)
class Limiter:
    """The state of one endpoint. Times are of the monotonic clock, in seconds."""

    limit: float
    least: int
    most: int
    in_flight: int = 0
    latency: float = 0.0
    successes: int = 0
    congestions: int = 0
    connection_failures: int = 0
    available_at: float = 0.0
    down_since: float | None = None
    _cut_at: float = field(default=-1e9)
    _down: int = 0
    _is_full: bool = False
    _preemptions: int | None = None
    _follows_cache: bool = False

    def has_room(self, now: float) -> bool:
        if now < self.available_at:
            return False
        return self.in_flight < (1 if self._down else int(self.limit))

    @property
    def load(self) -> float:
        """Share of the limit in use: the least loaded endpoint is asked next."""
        return self.in_flight / max(1.0, self.limit)

    @property
    def is_down(self) -> bool:
        return self._down > 0

    def succeeded(self, latency: float) -> None:
        self.successes += 1
        self._down = 0
        self.down_since = None
        self.latency = latency if not self.latency else (1 - _SMOOTHING) * self.latency + _SMOOTHING * latency
        if self.in_flight >= _USED * int(self.limit) and not self._is_full:
            # doubles per round trip until the server first objects, then grows by one
            self.limit = min(float(self.most), self.limit + (1.0 / self.limit if self.congestions else 1.0))

    def congested(self, retry_after: float | None = None) -> None:
        """The server is overloaded, and may ask to wait `retry_after` seconds."""
        now = time.monotonic()
        self.congestions += 1
        if now - self._cut_at > max(self.latency, 0.05):  # requests of one round trip fail for the same reason
            self._cut_at = now
            self.limit = max(float(self.least), self.limit / 2)
        if retry_after:
            self.available_at = max(self.available_at, now + retry_after)

    def reported(self, running: int, waiting: int, cache: float, preemptions: int) -> None:
        """What the server says about itself: requests running and waiting, share of its KV cache in use, preemptions so far."""
        before = self._preemptions if self._preemptions is not None else preemptions
        self._preemptions = preemptions
        self._is_full = waiting > 0 or cache > _FULL
        if preemptions > before:
            self.congestions += 1  # from now on the limit grows slowly
            self._follows_cache = True
            own = min(running, self.in_flight * running / max(1, running + waiting))  # others may ask this server too
            self.limit = max(float(self.least), min(self.limit, max(own, self.limit / 2)))
        elif self._may_follow(cache):
            more = max(0.0, self.in_flight * _FULL / cache - self.limit) / 2  # the other half: what runs now is still growing
            self.limit = min(float(self.most), self.limit + more)

    def _may_follow(self, cache: float) -> bool:
        """Whether the room in the cache says something: the limit is used, and no refusal has just brought it down."""
        is_used = self.in_flight >= _USED * int(self.limit)
        is_calm = time.monotonic() - self._cut_at > _CALM_TRIPS * max(self.latency, 0.05)
        return self._follows_cache and not self._is_full and cache > 0 and is_used and is_calm

    def unreachable(self) -> None:
        """The connection failed or broke."""
        self.connection_failures += 1
        now = time.monotonic()
        if now >= self.available_at:  # other requests of the same failure do not count again
            self.available_at = now + min(_DOWN_MOST_S, _DOWN_FIRST_S * 2**self._down)
            self._down += 1
            self.down_since = self.down_since or now
