"""What adapters made by given settings of LoRA do to their base, tried on a model of one layer.

    changes_base({"r": 8, "init_lora_weights": "pissa"})      # True
    is_drawn_anew({"init_lora_weights": "pissa_niter_4"})     # True: other weights at each loading

Costs milliseconds, before any weight is read. Settings that PEFT refuses change nothing here:
what is wrong with them is said when the adapter is made on the model itself.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lm_eval_latentref.checkpoints.census import Census, digest

_PLACES = {
    *("r", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "fan_in_fan_out", "inference_mode", "task_type"),
}
"""Arguments of LoraConfig that say where an adapter lies and in what kind of model."""

_WIDTH = 16


def changes_base(lora: Mapping[str, Any]) -> bool:
    """Whether making the adapter changes weights of the model below it, or sets them to train."""
    layer = _layer()
    before = Census(layer)
    model = _make(layer, lora, seed=0)
    return model is not None and touches_base(model, before)


def is_drawn_anew(lora: Mapping[str, Any]) -> bool:
    """Whether what the adapter leaves of its base depends on the state of random numbers."""
    left = []
    for seed in (0, 1):
        layer = _layer()
        (weight, _) = layer.parameters()
        if _make(layer, lora, seed=seed) is None:
            return False
        left.append(digest(weight))
    return left[0] != left[1]


def touches_base(model: Any, before: Census) -> bool:
    """Whether the PeftModel's base is no longer as it was `before`, or is to be trained."""
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    return any(weight in before for weight in trained) or before.first_change(model) is not None


def _layer() -> nn.Sequential:
    """One linear layer with the same weights each time, made without the global random state."""
    layer = nn.Linear(_WIDTH, _WIDTH, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    return nn.Sequential(OrderedDict(layer=layer))


def _make(layer: nn.Sequential, lora: Mapping[str, Any], *, seed: int) -> Any:
    """A PeftModel on `layer`, or None where PEFT refuses; random numbers go on as if it had not."""
    from peft import LoraConfig, get_peft_model

    known = {field.name for field in dataclasses.fields(LoraConfig)} - _PLACES
    settings = {name: value for name, value in lora.items() if name in known}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        try:
            return get_peft_model(layer, LoraConfig(**settings, r=2, target_modules=["layer"]))
        except (ValueError, TypeError, KeyError, RuntimeError, ImportError):
            return None
