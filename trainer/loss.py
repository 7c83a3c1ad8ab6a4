"""The joint loss: InfoNCE over the batch's candidates, and cross-entropy over traces and the embedding token.

    L = λ_ret · mean_i -log( exp(q_i·c_i/τ) / Σ_{j not masked} exp(q_i·c_j/τ) )
      + λ_gen · mean_i (CE_i + λ_route · CE of i's first token)

CE_i is the mean over the tokens of sample i: as printed in the paper it leaves the embedding token out, which would give the
route of bypassing queries no gradient. Candidates that are positives of a query, by did or by its list, are never its
negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.rows import IGNORE


@dataclass(frozen=True, slots=True)
class Pairing:
    """Who is whose positive in a (global) batch of n queries and m >= n candidates: candidate i is the positive of query i.

    masked: bool of shape (n, m); True where a candidate must not be a negative of a query. Never True at (i, i).
    """

    masked: Tensor

    @classmethod
    def of(cls, dids: Sequence[str], positives: Sequence[frozenset[str]]) -> Pairing:
        """dids: of the m candidates, the n positives first. positives: all listed positives of the n queries."""
        masked = torch.tensor(
            [
                [j != i and (did == dids[i] or did in listed) for j, did in enumerate(dids)]
                for i, listed in enumerate(positives)
            ],
            dtype=torch.bool,
        ).reshape(len(positives), len(dids))
        return cls(masked)


def info_nce(queries: Tensor, candidates: Tensor, pairing: Pairing, scale: Tensor, *, symmetric: bool = False) -> Tensor:
    """Mean over queries. queries (n, dim), candidates (m, dim), both of unit length; `scale` is 1/τ."""
    n = len(queries)
    logits = scale * queries.float() @ candidates.float().T
    logits = logits.masked_fill(pairing.masked.to(logits.device), -torch.inf)
    right = torch.arange(n, device=logits.device)
    loss = nn.functional.cross_entropy(logits, right)
    if symmetric:
        loss = (loss + nn.functional.cross_entropy(logits[:, :n].T, right)) / 2
    return loss


def trace_losses(states: Tensor, labels: Tensor, head: nn.Module, *, route: float = 0.0) -> Tensor:
    """CE per row, averaged over its labelled tokens; rows without labels give 0.

    states (rows, length, dim), labels (rows, length) -> (rows,). Logits are computed at labelled positions only. The CE of a
    row's first token, which decides its route, is added `route` times: in the mean over a trace of n tokens it has 1/n of the
    weight that it has in a bypass, and the learned route leans to bypass by that much.
    """
    wanted = labels != IGNORE
    counts = wanted.sum(1)
    if not bool(wanted.any()):
        return states.new_zeros(len(states), dtype=torch.float32)
    losses = nn.functional.cross_entropy(head(states[wanted]).float(), labels[wanted], reduction="none")
    owners = torch.arange(len(labels), device=labels.device).repeat_interleave(counts)
    summed = torch.zeros(len(labels), device=losses.device).index_add(0, owners, losses)
    means = summed / counts.clamp(min=1)
    if not route:
        return means
    learnt = counts > 0
    first = torch.zeros_like(summed)
    first[learnt] = losses[(counts.cumsum(0) - counts)[learnt]]
    return means + route * first
