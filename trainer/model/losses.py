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

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.encoding import IGNORE


@dataclass(frozen=True, slots=True)
class Pairing:
    """Who is whose positive in a (global) batch of n queries and m >= n candidates: candidate i is the positive of query i.

    masked: bool of shape (n, m); True where a candidate must not be a negative of a query. Never True at (i, i).
    """

    masked: Tensor

    @classmethod
    def of(cls, dids: Sequence[str], positives: Sequence[frozenset[str]]) -> Pairing:
        """dids: of the m candidates, the n positives first. positives: all listed positives of the n queries."""
        columns: dict[str, list[int]] = {}
        for j, did in enumerate(dids):
            columns.setdefault(did, []).append(j)
        masked = np.zeros((len(positives), len(dids)), np.bool_)
        for i, listed in enumerate(positives):
            for did in {dids[i]} | listed:
                masked[i, columns.get(did, ())] = True
            masked[i, i] = False
        return cls(torch.from_numpy(masked))


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


def trace_losses(
    states: Tensor, labels: Tensor, head: nn.Module, *, route: float = 0.0, learnt: Tensor | None = None
) -> Tensor:
    """CE per row, averaged over its labelled tokens; rows without labels give 0.

    states (rows, length, dim), labels (rows, length) -> (rows,). Logits are computed at labelled positions only, which `learnt`
    names in the flat (rows * length): to look for them here would mean to wait for the GPU. The CE of a
    row's first token, which decides its route, is added `route` times: in the mean over a trace of n tokens it has 1/n of the
    weight that it has in a bypass, and the learned route leans to bypass by that much.
    """
    if learnt is None:
        learnt = (labels != IGNORE).flatten().nonzero().flatten()
    rows, length = labels.shape
    if not learnt.numel():
        return states.new_zeros(rows, dtype=torch.float32)
    logits = head(states.flatten(0, 1).index_select(0, learnt)).float()
    losses = nn.functional.cross_entropy(logits, labels.flatten().index_select(0, learnt), reduction="none")
    owners = learnt // length
    summed = losses.new_zeros(rows).index_add(0, owners, losses)
    counts = torch.zeros_like(owners[:1]).expand(rows).index_add(0, owners, torch.ones_like(owners))
    means = summed / counts.clamp(min=1)
    if not route:
        return means
    starts = (counts.cumsum(0) - counts).clamp(max=len(losses) - 1)
    first = torch.where(counts > 0, losses.index_select(0, starts), 0.0)
    return means + route * first
