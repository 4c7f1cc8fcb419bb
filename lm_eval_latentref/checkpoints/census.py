"""Detects adapters that change the weights of the base to which they are attached.

    before = Census(model)
    peft_model = PeftModel.from_pretrained(model, path)
    before.first_change(peft_model)      # None, or the name of a changed weight
    changes_base({"r": 8, "init_lora_weights": "pissa"})      # True

A census reads every weight once, on its device; that takes about 0.1 s for 135 million float32
weights on a CPU. `changes_base` tries LoRA settings on a model of one layer, in milliseconds. If
PEFT refuses the settings, it returns False; PEFT's error occurs later, when the adapter is made for
the real model.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_latentref.checkpoints.state_dicts import named_tensors

# Legend of shape suffixes: R rows, C columns of a tensor's bytes, seen as integers.

_PLACES = {
    "r",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "fan_in_fan_out",
    "inference_mode",
    "task_type",
    "base_model_name_or_path",
    "revision",
}
"""Arguments of LoraConfig that select an adapter's layers, its base and its task; they do not
matter for a trial on one layer."""

_WIDTH = 16
"""The width of the layer on which settings are tried."""


class Census:
    """A record of a model's tensors: the number of places of each, and a digest of its bytes."""

    def __init__(self, model: nn.Module) -> None:
        named = named_tensors(model)
        # The tensors are stored too, because an id is valid only while its object exists.
        self._members = {id(tensor): (name, tensor) for name, tensor in reversed(named.items())}
        self._places = Counter(map(id, named.values()))
        self._digests = {key: digest(tensor) for key, (_, tensor) in self._members.items()}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._members

    def first_change(self, model: nn.Module) -> str | None:
        """The name of a tensor whose bytes or number of places changed; None if there is none.

        `model` may have additional tensors, such as those of adapters, and other names.
        """
        places = Counter(map(id, named_tensors(model).values()))
        for key, (name, tensor) in self._members.items():
            if places[key] != self._places[key] or digest(tensor) != self._digests[key]:
                return name
        return None


@torch.no_grad()
def digest(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and two sums of the bytes as integers, weighted by row and by column.

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


def changes_base(lora: Mapping[str, Any]) -> bool:
    """Whether an adapter with these settings changes its base's weights or makes them trainable."""
    layer = _layer()
    before = Census(layer)
    model = _make(layer, lora, seed=0)
    return model is not None and touches_base(model, before)


def changes_base_at_random(lora: Mapping[str, Any]) -> bool:
    """Whether an adapter with these settings changes its base depending on the random state."""
    digests = []
    for seed in (0, 1):
        layer = _layer()
        (weight, _) = layer.parameters()
        if _make(layer, lora, seed=seed) is None:
            return False
        digests.append(digest(weight))
    return digests[0] != digests[1]


def touches_base(model: Any, before: Census) -> bool:
    """Whether the base of a PeftModel changed since `before` or has trainable parameters."""
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    return any(weight in before for weight in trained) or before.first_change(model) is not None


def _layer() -> nn.Sequential:
    """A linear layer that always has the same weights; the global random state is not used."""
    layer = nn.Linear(_WIDTH, _WIDTH, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    return nn.Sequential(OrderedDict(layer=layer))


def _make(layer: nn.Sequential, lora: Mapping[str, Any], *, seed: int) -> Any:
    """A PeftModel on `layer`; None if PEFT refuses. The global random state is not changed."""
    from peft import LoraConfig, get_peft_model

    known = {field.name for field in dataclasses.fields(LoraConfig)} - _PLACES
    settings = {name: value for name, value in lora.items() if name in known}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        try:
            return get_peft_model(layer, LoraConfig(**settings, r=2, target_modules=["layer"]))
        except (ValueError, TypeError, KeyError, RuntimeError, ImportError):
            return None
