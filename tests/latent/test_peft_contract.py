"""The quick switch of adapters does the same as PEFT's public calls, or is switched off."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from tiny import tiny_model

from lm_eval_latentref.latent import peft_seams
from lm_eval_latentref.latent.peft_seams import AdapterSwitch, adapter_layers, keep_merged_rows

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


@pytest.fixture
def merges(monkeypatch):
    """The adapters for which PEFT has merged rows, call by call."""
    calls, of_peft = [], TrainableTokensLayer.get_merged_weights

    def merge(layer, active_adapters):
        calls.append(list(active_adapters))
        return of_peft(layer, active_adapters)

    monkeypatch.setattr(TrainableTokensLayer, "get_merged_weights", merge)
    return calls


def frozen():
    model = two_adapters("single rows").requires_grad_(False)
    keep_merged_rows(model)
    return model


def test_kept_rows_give_what_peft_gives_after_any_switch():
    model = frozen()
    check(model, AdapterSwitch(model))


@torch.no_grad()
def test_rows_are_merged_once_for_all_look_ups_and_the_tied_output_layer(merges):
    model = frozen()
    for _ in range(3):
        model.get_base_model()(IDS)
    assert merges == [["one"]]


@torch.no_grad()
@pytest.mark.parametrize("part", ["trainable_tokens_delta", "base_layer.weight"])
def test_rows_that_change_in_place_or_for_another_tensor_are_merged_again(part, merges):
    model = frozen()
    by_peft = two_adapters("single rows")
    for change in (lambda weight: weight.mul_(2), lambda weight: setattr(weight, "data", -weight)):
        for each in (model, by_peft):
            for name, weight in each.named_parameters():
                if part in name and ("delta" not in part or name.endswith(".one")):
                    change(weight)
        expected = by_peft.get_base_model()(IDS).logits
        assert torch.equal(model.get_base_model()(IDS).logits, expected)


def test_rows_in_training_keep_their_gradient():
    model = frozen()
    with torch.no_grad():
        model.get_base_model()(IDS)
    rows = [w for name, w in model.named_parameters() if name.endswith("tokens_delta.one")]
    rows[0].requires_grad_()
    model.get_base_model()(IDS).logits.sum().backward()
    assert rows[0].grad.abs().sum() > 0
