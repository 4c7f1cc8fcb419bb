"""Whether a model's own weights are still what they were: same tensors, same places, same bytes.

    before = Census(model)
    peft_model = PeftModel.from_pretrained(model, path)
    before.first_change(peft_model)      # None, or the name of a weight that was changed

Reads every weight once, where it lies: some 0.1 s for 135 million float32 weights on a CPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

# Legend of shape suffixes: R rows, C columns of a tensor's bytes, seen as integers.


class Census:
    """The parameters and buffers of a model: how often each occurs, and a digest of its bytes."""

    def __init__(self, model: nn.Module) -> None:
        named = _named_tensors(model)
        # The tensors are kept, for an id stands for one object only while that object lives.
        self._members = {id(tensor): (name, tensor) for name, tensor in reversed(named)}
        self._places = Counter(id(tensor) for _, tensor in named)
        self._digests = {key: digest(tensor) for key, (_, tensor) in self._members.items()}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._members

    def first_change(self, model: nn.Module) -> str | None:
        """Name of a tensor with other bytes, or used in more or fewer places; None if all are kept.

        `model` may hold further tensors, such as those of adapters, and other names.
        """
        places = Counter(id(tensor) for _, tensor in _named_tensors(model))
        for key, (name, tensor) in self._members.items():
            if places[key] != self._places[key] or digest(tensor) != self._digests[key]:
                return name
        return None


@torch.no_grad()
def digest(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, type and two sums of the bytes, weighted by row and by column.

    The sums are exact integers (modulo 2^64), so they do not depend on threads or devices.
    """
    plain = tensor.detach()
    if plain.numel() == 0:
        return tuple(plain.shape), plain.dtype
    rows = plain.contiguous().reshape(-1, plain.shape[-1] if plain.ndim else 1)
    num_bytes = rows.shape[1] * rows.element_size()
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    bits_RC = rows.view(next(kind for kind in kinds if num_bytes % kind.itemsize == 0))
    sums = [bits_RC.sum(axis, dtype=torch.int64) for axis in (0, 1)]
    weighted = [(total * _weights(total)).sum().item() for total in sums]
    return tuple(plain.shape), plain.dtype, *weighted


def _weights(total: Tensor) -> Tensor:
    return torch.arange(1, len(total) + 1, device=total.device)


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]
