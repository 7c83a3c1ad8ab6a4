"""Config keys that had another name before 0.2. An old key is refused with its new name."""

from __future__ import annotations

from typing import Final

RENAMED: Final[dict[str, str]] = {
    "batch.queries": "batch.global_batch_size",
    "batch.chunk": "batch.micro_batch_size",
    "batch.forward": "batch.forward_batch_size",
    "batch.chunk_patches": "batch.micro_batch_patches",
    "optimiser.tokens": "optimiser.token_lr_multiplier",
    "optimiser.clip": "optimiser.max_grad_norm",
    "optimiser.warmup": "optimiser.warmup_ratio",
    "optimiser.steps": "optimiser.max_steps",
    "checkpoint.every": "checkpoint.save_every",
    "loss.generation": "loss.generation_weight",
    "loss.retrieval": "loss.retrieval_weight",
    "loss.route": "loss.route_weight",
    "loss.symmetric": "loss.bidirectional",
    "model.pool": "model.pooling",
    "model.tokens": "model.trained_rows",
    "data.reasoned": "data.always_reason_dataset",
    "data.repeat": "data.upsample",
    "data.cache": "data.candidate_cache",
    "traces.begin": "traces.first_refresh",
    "evaluation.traces": "evaluation.teacher_trace_dataset",
    "evaluation.rows": "evaluation.candidate_batch_size",
    "input.cache": "input.candidate_cache",
    "teacher.server.silence_s": "teacher.server.unresponsive_timeout_s",
    "stop": "early_stop",
    "annotators": "workers",
    "verifier.server.silence_s": "verifier.server.unresponsive_timeout_s",
}
"""Old dotted key -> new dotted key."""
