"""Starts vLLM's engine in this process or beside it, and says why it does not start."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from schemas.errors import CotError

logger = logging.getLogger(__name__)

_ENVIRONMENT: Final = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `state_keeper` is written for the first one's logits processors
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_DEFAULTS: Final = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""For what the user has not set."""
ON_GPU: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
"""Processes of its own: images are prepared meanwhile, and the GPU's memory is free when they have ended."""
ON_CPU: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""In this process: it starts in a third of the time."""


class EngineError(CotError):
    """vLLM does not start, or has died."""


def start_engine(options: dict[str, Any], defaults: Mapping[str, str] = ON_CPU) -> Any:
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
