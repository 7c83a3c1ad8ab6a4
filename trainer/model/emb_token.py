"""Initial row of the embedding token.

A row initialised to the mean of all rows is almost never predicted: on the pocket base its logit is some 15 nats below the most
likely one. Until that is corrected, the cross-entropy of this one token dominates the gradient, and the contrastive loss falls
slowly. So the row starts as a copy of the end-of-turn token's row and is moved along the mean of the states that must predict
it, until it is as likely there as all other tokens together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.data.micro_batch import MicroBatch
from trainer.data.process_group import ProcessGroup
from trainer.model.embedder import Embedder


@torch.no_grad()
def initialise_emb_token(embedder: Embedder, chunks: Iterable[MicroBatch], group: ProcessGroup) -> None:
    """Sets the trained row (the output head's, unless it is tied) from labelled chunks; the same in every process.

    With states s_i at the positions whose label is the token, their mean m, and the missing logits d_i = logsumexp(others) -
    logit(token), the row moves by m · mean(d) / |m|²: on average nothing is missing any more.
    """
    row_D = _trained_row(embedder)
    end_of_turn = embedder.processor.tokenizer.eos_token_id
    if end_of_turn is not None:
        row_D.copy_(embedder.head.weight[end_of_turn])  # type: ignore[index]
    parts = []
    training = embedder.training
    embedder.eval()
    for chunk in chunks:
        moved = chunk.to(embedder.device)
        with embedder.casting():
            states_BLD = embedder.states(moved)
            parts.append(states_BLD[moved.labels == embedder.emb_id].float())
    states_TD = torch.cat(parts) if parts else row_D.new_zeros(0, len(row_D))
    if len(states_TD):
        mean_D = states_TD.mean(0)
        with embedder.casting():  # the head's weights may be bfloat16 while the trained row is float32
            logits_TV = embedder.head(states_TD.to(row_D.dtype)).float()
        own_T = logits_TV[:, embedder.emb_id].clone()
        logits_TV[:, embedder.emb_id] = -torch.inf
        row_D += mean_D * (logits_TV.logsumexp(-1) - own_T).mean() / mean_D.square().sum()
    embedder.train(training)
    row_D.copy_(group.gather_objects(row_D.cpu())[0])


def _trained_row(embedder: Embedder) -> Tensor:
    """A view of the token's row in the parameter that is trained for it."""
    tied = embedder.model.config.tie_word_embeddings
    deltas: list[nn.Parameter] = [
        parameter
        for name, parameter in embedder.model.named_parameters()
        if "trainable_tokens_delta" in name and (tied or "lm_head" in name)
    ]
    (parameter,) = deltas
    return parameter[0 if len(parameter) == 1 else embedder.emb_id]
