"""Queries that are writing their traces: one lane each of a batch, with their keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Lane(NamedTuple):
    """A query that is writing its trace.

    place: its index among the caller's sequences. began: when its prefill started.
    written, log_ps: its tokens so far, and the log-probability of each; the lists grow.
    bypass: (dim,), on the CPU, computed `bypass_seconds` after `began`.
    """

    place: int
    written: list[int]
    log_ps: list[float]
    began: float
    p_direct: float
    bypass: Tensor
    bypass_seconds: float
    prompt_tokens: int


@dataclass(slots=True)
class DecodeBatch:
    """Queries that are writing their traces, a lane each.

    keys, values: per layer (lanes, heads, length, dim). mask: (lanes, length), 0 at padding.
    position: (lanes, 1), of the next token. token: (lanes,), fed next. log_p: (lanes,), of that token.
    closing: whether the embedding token is next. With `token` pooling its state will be the embedding.
    ended: whether the trace ended by itself.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    position: Tensor
    token: Tensor
    log_p: Tensor
    lanes: list[Lane]
    closing: list[bool]
    ended: list[bool]

    def __len__(self) -> int:
        return len(self.lanes)

    def select(self, kept: list[int]) -> DecodeBatch:
        """These lanes only, without padding that none of them needs."""
        lanes_B = torch.tensor(kept, device=self.mask.device)
        mask_BL = self.mask[lanes_B]
        used = mask_BL.any(0).nonzero()
        length = int(used.max()) + 1 if len(used) else 0
        return DecodeBatch(
            keys=[keys_BHLD[lanes_B, :, :length] for keys_BHLD in self.keys],
            values=[values_BHLD[lanes_B, :, :length] for values_BHLD in self.values],
            mask=mask_BL[:, :length],
            position=self.position[lanes_B],
            token=self.token[lanes_B],
            log_p=self.log_p[lanes_B],
            lanes=[self.lanes[i] for i in kept],
            closing=[self.closing[i] for i in kept],
            ended=[self.ended[i] for i in kept],
        )

    def join(self, other: DecodeBatch) -> DecodeBatch:
        """The lanes of both, padded to one length."""
        length = max(self.mask.shape[1], other.mask.shape[1])

        def pad(tensor: Tensor, dim: int) -> Tensor:
            missing = length - tensor.shape[dim]
            if not missing:
                return tensor
            shape = list(tensor.shape)
            shape[dim] = missing
            return torch.cat([tensor, tensor.new_zeros(shape)], dim)

        def join_layers(mine: list[Tensor], others: list[Tensor]) -> list[Tensor]:
            return [torch.cat([pad(x_BHLD, 2), pad(y_BHLD, 2)]) for x_BHLD, y_BHLD in zip(mine, others, strict=True)]

        return DecodeBatch(
            keys=join_layers(self.keys, other.keys),
            values=join_layers(self.values, other.values),
            mask=torch.cat([pad(self.mask, 1), pad(other.mask, 1)]),
            position=torch.cat([self.position, other.position]),
            token=torch.cat([self.token, other.token]),
            log_p=torch.cat([self.log_p, other.log_p]),
            lanes=self.lanes + other.lanes,
            closing=self.closing + other.closing,
            ended=self.ended + other.ended,
        )
