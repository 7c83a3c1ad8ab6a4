"""The joint loss: InfoNCE over the batch's candidates, and cross-entropy over traces and the embedding token.

    L = λ_ret · mean_i -log( exp(q_i·c_i/τ) / Σ_{j not masked} exp(q_i·c_j/τ) )
      + λ_gen · mean_i (CE_i + λ_route · CE of i's first token)
      + λ_distil · mean_i KL(a verifier's distribution over i's candidates | the embedder's), if there is one

CE_i is the mean over the tokens of sample i: as printed, the paper's loss excludes the embedding token, which would give the
route of bypassing queries no gradient. A candidate is never a negative of a query whose list of positives names it, or whose
positive in the batch has the same did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.micro_batch import IGNORE
from trainer.data.mined import Judged

_SUREST: Final = 1e-6
"""A verifier's P(yes) counts as at least this, and at most 1 minus this."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Positives in a (global) batch of n queries and m >= n candidates: candidate i is the positive of query i.

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


def info_nce(queries_QD: Tensor, candidates_CD: Tensor, pairing: Pairing, scale: Tensor, *, symmetric: bool = False) -> Tensor:
    """Mean over queries; candidate i is the positive of query i. Vectors are of unit length; `scale` is 1/τ."""
    n = len(queries_QD)
    logits_QC = scale * queries_QD.float() @ candidates_CD.float().T
    logits_QC = logits_QC.masked_fill(pairing.masked.to(logits_QC.device), -torch.inf)
    target_Q = torch.arange(n, device=logits_QC.device)
    loss = nn.functional.cross_entropy(logits_QC, target_Q)
    if symmetric:
        loss = (loss + nn.functional.cross_entropy(logits_QC[:, :n].T, target_Q)) / 2
    return loss


def matryoshka_info_nce(
    queries_QD: Tensor,
    candidates_CD: Tensor,
    pairing: Pairing,
    scale: Tensor,
    *,
    dims: Sequence[int] = (),
    symmetric: bool = False,
) -> Tensor:
    """Mean of `info_nce` over the whole vectors and their first `dims` dimensions, of unit length (Kusupati et al. 2022,
    arXiv 2205.13147). The mean, so that the weights of retrieval and generation keep their meaning."""
    losses = [info_nce(queries_QD, candidates_CD, pairing, scale, symmetric=symmetric)]
    for dim in dims:
        first_QD, first_CD = (nn.functional.normalize(x[:, :dim].float(), dim=-1) for x in (queries_QD, candidates_CD))
        losses.append(info_nce(first_QD, first_CD, pairing, scale, symmetric=symmetric))
    return torch.stack(losses).mean() if dims else losses[0]


def distillation_loss(
    queries_QD: Tensor, candidates_CD: Tensor, judged: Sequence[Judged], scale: Tensor, *, temperature: float
) -> Tensor:
    """Sum over the judged queries of KL(p | q): p = softmax(log-odds of P(yes) / temperature), q = softmax(scale · cosine).

    The log-odds of a judgement between two labels are the difference of the verifier's logits. No gradient passes to `scale`:
    every process distils its own queries, and the temperature belongs to all.
    """
    total = queries_QD.new_zeros((), dtype=torch.float32)
    for query, places, yes in judged:
        odds_K = torch.logit(torch.tensor(yes, dtype=torch.float64), eps=_SUREST).to(total)
        scores_K = scale.detach() * (candidates_CD[list(places)].float() @ queries_QD[query].float())
        wanted_K, own_K = (nn.functional.log_softmax(logits_K, -1) for logits_K in (odds_K / temperature, scores_K))
        total = total + nn.functional.kl_div(own_K, wanted_K, reduction="sum", log_target=True)
    return total


def trace_losses(
    states_BLD: Tensor, labels_BL: Tensor, head: nn.Module, *, route: float = 0.0, learnt: Tensor | None = None
) -> Tensor:
    """CE per sequence (B,), averaged over its labelled tokens; 0 for sequences without labels.

    learnt: sorted indices of the labelled positions in the flattened (B * L); logits are computed only there. Finding them
    here would wait for the GPU.
    route: weight of an extra CE term on a sequence's first token, which decides its route. In the mean over a trace of n tokens
    that token has 1/n of the weight that it has in a bypass, which biases the learned route towards bypass."""
    learnt_T = (labels_BL != IGNORE).flatten().nonzero().flatten() if learnt is None else learnt
    sequences, length = labels_BL.shape
    if not learnt_T.numel():
        return states_BLD.new_zeros(sequences, dtype=torch.float32)
    logits_TV = head(states_BLD.flatten(0, 1).index_select(0, learnt_T)).float()
    losses_T = nn.functional.cross_entropy(logits_TV, labels_BL.flatten().index_select(0, learnt_T), reduction="none")
    owners_T = learnt_T // length
    summed_B = losses_T.new_zeros(sequences).index_add(0, owners_T, losses_T)
    counts_B = torch.zeros_like(owners_T[:1]).expand(sequences).index_add(0, owners_T, torch.ones_like(owners_T))
    means_B = summed_B / counts_B.clamp(min=1)
    if not route:
        return means_B
    starts_B = (counts_B.cumsum(0) - counts_B).clamp(max=len(losses_T) - 1)
    first_B = torch.where(counts_B > 0, losses_T.index_select(0, starts_B), 0.0)
    return means_B + route * first_B
