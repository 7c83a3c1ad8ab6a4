"""Attention of a vision tower in few calls.

Transformers runs the tower's windows one by one unless flash-attn is installed: 32 blocks and 16 pictures of 800x600 are 21,568
calls, and each block reads the windows' lengths back from the GPU. Here all windows of one length go through one call, and the
lengths are read once for each list of them.

It is registered as an attention function, whose name must contain "flash": that is how transformers' vision towers choose
between one call with all lengths and one call for each. Nothing of flash-attn is needed, and gradients flow as through SDPA.
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
    """Makes the vision tower of a Qwen2.5-VL, Qwen3-VL or their like attend in few calls. False where there is no such tower.

    Undone by `model.set_attn_implementation`: call this after it.
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
    """The patch embedding as the matrix product that it is: its kernel is as large as its input."""
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
    """query, key, value (1, heads, tokens, dim) -> (1, tokens, heads, dim). cu_seq_lens_q (windows + 1,): where each begins."""
    assert attention_mask is None, "windows are told apart by their lengths"
    groups = _groups(cu_seq_lens_q, query.device)
    if len(groups) == 1:  # every window has this length: no copy
        (length, _rows) = groups[0]
        parts = [_windows(states[0], length) for states in (query, key, value)]
        found = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], dropout_p=dropout, scale=scaling)
        return found.transpose(1, 2).flatten(0, 1).unsqueeze(0), None
    out = torch.empty_like(query[0].transpose(0, 1))
    for length, rows in groups:
        assert rows is not None, "several lengths"
        parts = [_windows(states[0][:, rows], length) for states in (query, key, value)]
        found = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], dropout_p=dropout, scale=scaling)
        out = out.index_copy(0, rows, found.transpose(1, 2).flatten(0, 1))
    return out.unsqueeze(0), None


def _windows(states: Tensor, length: int) -> Tensor:
    """(heads, windows * length, dim) -> (windows, heads, length, dim)."""
    heads, tokens, dim = states.shape
    return states.reshape(heads, tokens // length, length, dim).transpose(0, 1)


def _groups(starts: Tensor, device: torch.device) -> list[tuple[int, Tensor | None]]:
    """(length, the tokens of all windows of it on the device; None where there is one length only).

    Kept on the tensor of the lengths: every block of a forward pass is given the same one. They are best on the CPU.
    """
    known: list[tuple[int, Tensor | None]] | None = getattr(starts, "_windows_by_length", None)
    if known is not None:
        return known
    by_length: dict[int, list[int]] = {}
    for begin, end in pairwise(starts.tolist()):
        if end > begin:
            by_length.setdefault(end - begin, []).append(begin)
    groups: list[tuple[int, Tensor | None]] = []
    for length, firsts in by_length.items():
        if len(by_length) == 1:
            groups.append((length, None))
            continue
        places = (torch.tensor(firsts)[:, None] + torch.arange(length)).flatten()
        if device.type == "cuda":
            places = places.pin_memory()
        groups.append((length, places.to(device, non_blocking=True)))
    starts._windows_by_length = groups  # type: ignore[attr-defined]
    return groups


AttentionInterface.register(NAME, attend_by_length)
