"""Counters of an annotation worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class WorkerStats:
    """Counts of one worker since its start."""

    done: int = 0
    reasoning: int = 0
    bypass: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    limit: int = 0
    asked: int = 0
    failed: int = 0
    known: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waits_for_teacher: bool = False
    trouble: str = ""
    failure_share: float = 0.0
    unreachable_s: float = 0.0
    rejection_share: float = 0.0
    unread_share: float = 0.0
    """Share of the last queries whose image could not be used for the most frequent reason."""
    unread_reason: str = ""
    unread_last: str = ""
