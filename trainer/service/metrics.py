"""Prometheus metrics of the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServiceMetrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("mbeir_cot_requests", "Answered requests by HTTP status", ["status"], registry=registry)
        self.refused = Counter("mbeir_cot_refused", "Requests answered with 429 or 503", ["reason"], registry=registry)
        self.embedded = Counter(
            "mbeir_cot_embedded", "Inputs embedded: bypass, reasoning or candidate", ["kind"], registry=registry
        )
        self.cut = Counter("mbeir_cot_traces_cut", "Traces that did not end by themselves", registry=registry)
        self.tokens = Counter("mbeir_cot_tokens", "Tokens read (prompt) and written (trace)", ["kind"], registry=registry)
        self.restarts = Counter("mbeir_cot_engine_restarts", "Times that the engine was started again", registry=registry)
        self.request_seconds = Histogram(
            "mbeir_cot_request_seconds", "From a request's arrival to its answer", buckets=_SECONDS, registry=registry
        )
        self.wait_seconds = Histogram(
            "mbeir_cot_wait_seconds", "From an input's acceptance to its batch", buckets=_SECONDS, registry=registry
        )
        self.batch_seconds = Histogram("mbeir_cot_batch_seconds", "Time of a batch", buckets=_SECONDS, registry=registry)
        self.batch_size = Histogram("mbeir_cot_batch_size", "Inputs of a batch", buckets=_SIZES, registry=registry)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when it is asked for."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def render(self) -> bytes:
        return generate_latest(self._registry)
