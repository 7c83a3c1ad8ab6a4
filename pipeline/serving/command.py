"""How a vLLM server is started: its command line and environment, as functions of the settings."""

from __future__ import annotations

import json
import sys

from pipeline.serving.cpu_features import cpu_multiplies_bfloat16
from pipeline.serving.pixels import processor_kwargs
from schemas.hosting import ServerConfig


def arguments(config: ServerConfig, port: int) -> list[str]:
    """Arguments of vLLM's OpenAI server."""
    emulated = config.device == "cpu" and config.dtype == "auto" and not cpu_multiplies_bfloat16()
    dtype = "float32" if emulated else config.dtype
    found = [
        *("--model", config.model, "--served-model-name", config.served_name),
        *("--host", config.host, "--port", str(port)),
        *("--dtype", dtype, "--max-model-len", str(config.max_model_len)),
        *("--max-num-seqs", str(config.max_num_seqs), "--seed", str(config.seed)),
        *("--limit-mm-per-prompt", json.dumps({"image": config.images_per_prompt, "video": 0})),
    ]
    if pixels := processor_kwargs(config):
        found += ["--mm-processor-kwargs", json.dumps(pixels)]
    if config.revision:
        found += ["--revision", config.revision]
    if config.device == "cuda":
        found += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
        found += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
        if (
            config.tensor_parallel_size > 1
        ):  # each GPU encodes other images: a split vision tower spends its time on all-reduces
            found += ["--mm-encoder-tp-mode", "data"]
    if config.api_servers > 1:
        found += ["--api-server-count", str(config.api_servers)]
    if config.device == "cpu" or config.enforce_eager:
        found.append("--enforce-eager")
    if config.trust_remote_code:
        found.append("--trust-remote-code")
    if config.media_root is not None:
        found += ["--allowed-local-media-path", str(config.media_root.resolve())]
    if config.max_queued is not None:
        found += ["--max-num-queued-reqs", str(config.max_queued)]
    return [*found, *config.extra_args]


def environment(config: ServerConfig) -> dict[str, str]:
    """Variables to set in the server's process."""
    found = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if config.device == "cpu":
        found["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_kv_cache_gib)
        found["VLLM_CPU_OMP_THREADS_BIND"] = config.cpu_threads
    return found


def command(config: ServerConfig, port: int, parent: int) -> list[str]:
    """The supervisor's command line: it starts the server and ends it when `parent` is gone."""
    return [sys.executable, "-m", "pipeline.serving.supervise", str(parent), "--", *arguments(config, port)]
