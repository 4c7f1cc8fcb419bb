"""Attention that takes windows as flash attention does, without its kernels.

    register()
    AutoModelForCausalLM.from_config(config, attn_implementation=NAME)

No mask is made but that of padding; each layer gives the width of its window.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

NAME = "windows_by_layer"


def register() -> None:
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


def _attend(
    module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **_
):
    num_groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(num_groups, dim=1) for tensor in (key, value))
    num_new, num_all = query.shape[2], key.shape[2]
    behind = torch.arange(num_new)[:, None] + num_all - num_new - torch.arange(num_all)
    sees = behind >= 0
    if sliding_window is not None:
        sees = sees & (behind < sliding_window)
    if attention_mask is not None:
        sees = sees & attention_mask[:, None, None, -num_all:].bool()
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~sees, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None
