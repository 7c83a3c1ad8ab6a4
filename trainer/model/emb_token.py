"""Where the embedding token's row begins.

A new row that is the mean of all others is as good as never predicted: on the pocket base its logit is some 15 nats below the
likeliest. Until that is corrected, the cross-entropy of this one token outweighs everything else in the gradient, and the
contrastive loss falls slowly. So the row begins as the end of turn's, moved along the mean of the states that are to predict
it, until it is there as likely as all other tokens together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.data.encoding import MicroBatch
from trainer.distributed import ProcessGroup
from trainer.model.embedder import Embedder


@torch.no_grad()
def initialise_emb_token(embedder: Embedder, chunks: Iterable[MicroBatch], world: ProcessGroup) -> None:
    """Sets the trainable row (of the output head, where it is not tied) from labelled chunks, the same in every process.

    With states s_i at the positions whose label is the token, their mean m, and the missing logits d_i = logsumexp(others) -
    logit(token), the row moves by m · mean(d) / |m|²: on average nothing is missing any more.
    """
    row = _row(embedder)
    ending = embedder.processor.tokenizer.eos_token_id
    if ending is not None:
        row.copy_(embedder.head.weight[ending])  # type: ignore[index]
    states = []
    training = embedder.training
    embedder.eval()
    for chunk in chunks:
        moved = chunk.to(embedder.device)
        with embedder.casting():
            states.append(embedder.states(moved)[moved.labels == embedder.emb_id].float())
    found = torch.cat(states) if states else row.new_zeros(0, len(row))
    if len(found):
        mean = found.mean(0)
        with embedder.casting():  # the head's weights may be bfloat16 while the trained row is float32
            logits = embedder.head(found.to(row.dtype)).float()
        own = logits[:, embedder.emb_id].clone()
        logits[:, embedder.emb_id] = -torch.inf
        row += mean * (logits.logsumexp(-1) - own).mean() / mean.square().sum()
    embedder.train(training)
    row.copy_(world.gather_objects(row.cpu())[0])


def _row(embedder: Embedder) -> Tensor:
    """The row in the parameter that is trained for it: a view."""
    tied = embedder.model.config.tie_word_embeddings
    rows: list[nn.Parameter] = [
        parameter
        for name, parameter in embedder.model.named_parameters()
        if "trainable_tokens_delta" in name and (tied or "lm_head" in name)
    ]
    (parameter,) = rows
    return parameter[0 if len(parameter) == 1 else embedder.emb_id]
