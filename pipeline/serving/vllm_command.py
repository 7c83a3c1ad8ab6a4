"""The command line and environment of a vLLM server, as functions of its settings."""

from __future__ import annotations

import json
import sys
from typing import Final

from pipeline.serving.cpu_features import cpu_multiplies_bfloat16
from pipeline.serving.pixel_budget import processor_kwargs
from schemas.hosting import ServerConfig

_BATCHED_TOKENS: Final = 4096
"""Least number of tokens in a step on CPU: a prompt is never split, and short ones share a step."""


def arguments(config: ServerConfig, port: int) -> list[str]:
    """Arguments of vLLM's OpenAI server."""
    emulated = config.device == "cpu" and config.dtype == "auto" and not cpu_multiplies_bfloat16()
    dtype = "float32" if emulated else config.dtype
    options = [
        *("--model", config.model, "--served-model-name", config.served_name),
        *("--host", config.host, "--port", str(port)),
        *("--dtype", dtype, "--max-model-len", str(config.max_model_len)),
        *("--max-num-seqs", str(config.max_num_seqs), "--seed", str(config.seed)),
        *("--limit-mm-per-prompt", json.dumps({"image": config.images_per_prompt, "video": 0})),
    ]
    if pixels := processor_kwargs(config):
        options += ["--mm-processor-kwargs", json.dumps(pixels)]
    if config.revision:
        options += ["--revision", config.revision]
    if config.device == "cuda":
        options += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
        options += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
        if config.tensor_parallel_size > 1:  # each GPU encodes whole images: a sharded vision tower waits for all-reduces
            options += ["--mm-encoder-tp-mode", "data"]
    if config.api_servers > 1:
        options += ["--api-server-count", str(config.api_servers)]
    if config.device == "cpu" or config.enforce_eager:
        options.append("--enforce-eager")
    if config.device == "cpu":  # vLLM 0.32 dies there of a seeded request with a temperature whose prefill is split
        whole = max(_BATCHED_TOKENS, config.max_model_len, config.max_num_seqs)
        options += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(whole)]
    if config.trust_remote_code:
        options.append("--trust-remote-code")
    if config.media_root is not None:
        options += ["--allowed-local-media-path", str(config.media_root.resolve())]
    if config.max_queued is not None:
        options += ["--max-num-queued-reqs", str(config.max_queued)]
    return [*options, *config.extra_args]


def environment(config: ServerConfig) -> dict[str, str]:
    """Variables to set in the server's process."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if config.device == "cpu":
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_kv_cache_gib)
        variables["VLLM_CPU_OMP_THREADS_BIND"] = config.cpu_threads
    return variables


def command(config: ServerConfig, port: int, parent: int) -> list[str]:
    """The supervisor's command line: it starts the server and ends it when `parent` is gone."""
    return [sys.executable, "-m", "pipeline.serving.supervise", str(parent), "--", *arguments(config, port)]
