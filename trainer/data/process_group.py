"""The processes of a distributed run, and what each contributes to a step's loss and gradients.

There is no wrapper around the model. Embeddings are gathered; every process computes the whole contrastive loss and its exact
gradient with respect to *its own* embeddings; cross-entropy is divided by the global number of queries; and gradients are
summed. So one process and many give the same gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from schemas.errors import ConfigError

T = TypeVar("T")


def takes_gpu(device: str) -> bool:
    """Whether `device: auto | cpu | cuda` means a GPU on this machine."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    @classmethod
    def join(cls, device: str) -> ProcessGroup:
        """A single process, or the group that torchrun, accelerate or Ray Train started: they set RANK and WORLD_SIZE."""
        if device == "auto":
            device = "cuda" if takes_gpu(device) else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: cuda, but torch sees no GPU", "set device: auto or cpu, or install the GPU build")
        local = int(os.environ.get("LOCAL_RANK", "0"))
        where = torch.device(device, local) if device == "cuda" else torch.device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, where)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), where)

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def gather(self, vectors: Tensor) -> list[Tensor]:
        """The (n, dim) tensors of all processes, by rank; n may differ. No gradient passes to the other processes."""
        if self.size == 1:
            return [vectors]
        counts = self.gather_objects(len(vectors))
        missing = max(counts) - len(vectors)
        padded = torch.cat([vectors, vectors.new_zeros(missing, *vectors.shape[1:])]).contiguous()
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
        parts[self.rank] = vectors
        return parts

    def gather_objects(self, mine: T) -> list[T]:
        """The objects of all processes, by rank."""
        if self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, mine)
        return gathered

    def sum_gradients(self, parameters: Iterable[nn.Parameter], whole: Sequence[nn.Parameter] = ()) -> None:
        """Sums gradients over processes, except those of `whole`, which every process has computed in full."""
        if self.size == 1:
            return
        known = {id(parameter) for parameter in whole}
        for parameter in parameters:
            if not parameter.requires_grad or id(parameter) in known:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def sum(self, value: Tensor) -> Tensor:
        """Sums over processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()
