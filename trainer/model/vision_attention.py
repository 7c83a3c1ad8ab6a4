"""Attention of a vision tower in few calls.

Without flash-attn, transformers runs the tower's windows one by one: 32 blocks and 16 images of 800x600 make 21,568 calls, and
each block reads the windows' lengths back from the GPU. Here all windows of one length go through one call, and the lengths are
read once per list of them.

It is registered as an attention function whose name must contain "flash": by that, transformers' vision towers choose one call
with all lengths over one call for each. Nothing of flash-attn is needed, and gradients flow as through SDPA.
"""

from __future__ import annotations

from itertools import pairwise
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME: Final = "windows_in_place_of_flash"


def batch_windows(model: Any) -> bool:
    """Switches the vision tower of a Qwen2.5-VL, Qwen3-VL or similar model to few calls. False if there is no such tower.

    `model.set_attn_implementation` undoes it: call that first.
    """
    tower = getattr(getattr(model, "model", model), "visual", None)
    if tower is None or not hasattr(tower, "blocks"):
        return False
    configs = {id(config): config for config in (tower.config, *(block.attn.config for block in tower.blocks))}
    for config in configs.values():
        config._attn_implementation = NAME
    patches = tower.patch_embed.proj
    patches.forward = MethodType(_embed_patches, patches)
    return True


def _embed_patches(conv: nn.Conv3d, patches: Tensor) -> Tensor:
    """The patch embedding as a matrix product: its kernel is as large as its input."""
    return nn.functional.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)


def attend_by_length(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """query, key, value (1, heads, tokens, dim) -> (1, tokens, heads, dim). cu_seq_lens_q: (windows + 1,), their starts."""
    assert attention_mask is None, "windows are told apart by their lengths"
    groups = _group_windows(cu_seq_lens_q, query.device)

    def attend(tokens: Tensor | None, length: int) -> Tensor:
        """(tokens, heads, dim), for all tokens or those at these indices."""
        query_WHLD, key_WHLD, value_WHLD = (
            _split_windows(states[0] if tokens is None else states[0][:, tokens], length) for states in (query, key, value)
        )
        attended_WHLD = nn.functional.scaled_dot_product_attention(
            query_WHLD, key_WHLD, value_WHLD, dropout_p=dropout, scale=scaling
        )
        return attended_WHLD.transpose(1, 2).flatten(0, 1)

    if len(groups) == 1:  # every window has this length: no copy
        return attend(None, groups[0][0]).unsqueeze(0), None
    out_NHD = torch.empty_like(query[0].transpose(0, 1))
    for length, tokens in groups:
        assert tokens is not None, "several lengths"
        out_NHD = out_NHD.index_copy(0, tokens, attend(tokens, length))
    return out_NHD.unsqueeze(0), None


def _split_windows(states_HND: Tensor, length: int) -> Tensor:
    """(heads, windows * length, dim) -> (windows, heads, length, dim)."""
    heads, tokens, dim = states_HND.shape
    return states_HND.reshape(heads, tokens // length, length, dim).transpose(0, 1)


def _group_windows(starts: Tensor, device: torch.device) -> list[tuple[int, Tensor | None]]:
    """(length, indices on the device of the tokens of all windows of that length; None if there is only one length).

    Cached on the tensor `starts`, because every block of a forward pass gets the same one. It is best on the CPU.
    """
    cached: list[tuple[int, Tensor | None]] | None = getattr(starts, "_windows_by_length", None)
    if cached is not None:
        return cached
    by_length: dict[int, list[int]] = {}
    for begin, end in pairwise(starts.tolist()):
        if end > begin:
            by_length.setdefault(end - begin, []).append(begin)
    groups: list[tuple[int, Tensor | None]] = []
    for length, firsts in by_length.items():
        if len(by_length) == 1:
            groups.append((length, None))
            continue
        tokens = (torch.tensor(firsts)[:, None] + torch.arange(length)).flatten()
        if device.type == "cuda":
            tokens = tokens.pin_memory()
        groups.append((length, tokens.to(device, non_blocking=True)))
    starts._windows_by_length = groups  # type: ignore[attr-defined]
    return groups


AttentionInterface.register(NAME, attend_by_length)
