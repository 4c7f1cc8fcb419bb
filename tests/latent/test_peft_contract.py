"""The quick switch of adapters does the same as PEFT's public calls, or is switched off."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from lm_eval_latentref.latent import peft_seams
from lm_eval_latentref.latent.peft_seams import AdapterSwitch, adapter_layers

pytestmark = pytest.mark.contract
IDS = torch.tensor([[3, 7, 11, 5]])
KINDS = {
    "factors": {},
    "magnitudes": {"use_dora": True},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "single rows": {"trainable_token_indices": {"embed_tokens": [7, 11]}},
}


@torch.no_grad()
def two_adapters(kind):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **KINDS[kind])
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), config, adapter_name="one")
    model.add_adapter("two", config)
    for name, weight in model.named_parameters():
        if ".one" in name or ".two" in name:
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


@torch.no_grad()
def by_peft(model, adapter):
    if adapter is None:
        with model.disable_adapter():
            return model.get_base_model()(IDS).logits
    model.base_model.set_adapter(adapter, inference_mode=True)
    return model.get_base_model()(IDS).logits


def check(model, switch):
    wanted = {adapter: by_peft(model, adapter) for adapter in ("one", "two", None)}
    assert not torch.equal(wanted["one"], wanted["two"])
    model.base_model.set_adapter("one", inference_mode=True)
    for adapter in ("one", "two", None, "two", None, "one", "one", None, "two"):
        switch.to(adapter)
        with torch.no_grad():
            assert torch.equal(model.get_base_model()(IDS).logits, wanted[adapter])
        assert not any(weight.requires_grad for weight in model.parameters() if adapter is None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_quick_switch_gives_what_the_public_calls_give(kind):
    model = two_adapters(kind)
    switch = AdapterSwitch(model)
    check(model, switch)
    assert switch.is_quick
    assert len(switch._states) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_hold_more_than_is_known_are_switched_by_the_public_calls(kind, monkeypatch):
    model = two_adapters(kind)
    layer = adapter_layers(model)[0]
    public = type(model.base_model).set_adapter

    def set_adapter(tuner, *args, **kwargs):
        layer.something_new = object()
        return public(tuner, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "set_adapter", set_adapter)
    switch = AdapterSwitch(model)
    check(model, switch)
    assert not switch.is_quick


def test_names_that_the_layers_no_longer_have_turn_the_quick_switch_off(monkeypatch):
    monkeypatch.setattr(peft_seams, "_SWITCHED", ("_renamed", "_disable_adapters"))
    model = two_adapters("factors")
    switch = AdapterSwitch(model)
    assert not switch.is_quick
    check(model, switch)
