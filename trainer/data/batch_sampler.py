"""Assigns queries to batches by the seed alone, for any number of workers and processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def rng_for(*parts: object) -> np.random.Generator:
    """A random generator that depends on these parts only."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class BatchSampler:
    """Batches of an endless sequence of epochs.

    Args:
        groups: dataset-task -> indices of its queries.
        batch: queries in a batch. With `by-task`, what the groups have left at the end of an epoch makes mixed batches; an
            incomplete one is dropped.
        sampling: `mixed` draws a batch from all groups, `by-task` from one.
        balance: queries of a group are drawn in proportion to size ** balance; an epoch keeps its length.
    """

    groups: Mapping[str, Sequence[int]]
    batch: int
    seed: int
    sampling: Literal["mixed", "by-task"] = "mixed"
    balance: float = 1.0

    @property
    def size(self) -> int:
        return sum(map(len, self.groups.values()))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return max(1, self.size // self.batch)

    def batch_at(self, step: int) -> tuple[int, Indices]:
        """(epoch, indices of shape (batch,)) of a step."""
        epoch, place = divmod(step, self.per_epoch)
        return epoch, self.epoch(epoch)[place]

    def epoch(self, epoch: int) -> list[Indices]:
        rng = rng_for("order", self.seed, epoch)
        drawn = {name: self._drawn(name, rng) for name in self.groups}
        if self.sampling == "mixed":
            every = rng.permutation(np.concatenate(list(drawn.values())))
            return self._cut(np.resize(every, max(len(every), self.per_epoch * self.batch)))[: self.per_epoch]
        batches, left = [], []
        for indices in drawn.values():
            whole = len(indices) - len(indices) % self.batch
            batches += self._cut(indices[:whole])
            left.append(indices[whole:])
        rest = rng.permutation(np.concatenate(left))
        batches += self._cut(rest)
        if not batches:
            batches = [np.resize(rest, self.batch)]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        return [shuffled[i % len(shuffled)] for i in range(self.per_epoch)]

    def _cut(self, indices: Indices) -> list[Indices]:
        return [indices[i : i + self.batch] for i in range(0, len(indices) - self.batch + 1, self.batch)]

    def _drawn(self, name: str, rng: np.random.Generator) -> Indices:
        """A group's indices for one epoch: whole permutations of it, and a part of another."""
        indices = np.asarray(self.groups[name], np.int64)
        total = sum(len(group) ** self.balance for group in self.groups.values())
        wanted = len(indices) if self.balance == 1 else max(1, round(self.size * len(indices) ** self.balance / total))
        rounds = math.ceil(wanted / len(indices))
        drawn: Indices = np.concatenate([rng.permutation(indices) for _ in range(rounds)])[:wanted]
        return drawn
