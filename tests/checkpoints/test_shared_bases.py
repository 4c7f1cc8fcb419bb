"""A base that several models share is the same for all of them, whatever is attached to it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoHaConfig, PeftModel, get_peft_model
from tiny_checkpoints import fresh_model, load, logits, save_adapter, save_folder
from transformers import AutoModelForCausalLM

from lm_eval_latentref.checkpoints.census import Census, changes_base, changes_base_at_random
from lm_eval_latentref.errors import LatentRefError

CHANGING = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "all biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "layers used twice": {"layer_replication": [[0, 2], [1, 2]], "init_lora_weights": True},
}
OTHER_TYPES = {
    "ia3": IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"]),
    "norms": LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model = fresh_model("llama")
    config = type(model.config)(**{**model.config.to_dict(), "attention_bias": True})
    torch.manual_seed(0)
    biased = AutoModelForCausalLM.from_config(config)
    return save_folder(biased, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("plain") / "plain", seed=1)


def by_peft(base, adapter):
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


@pytest.mark.parametrize("kind", CHANGING)
def test_an_adapter_that_changes_its_base_is_right_alone_and_refused_where_others_share_it(
    base, plain, tmp_path, kind
):
    changing = save_adapter(base, tmp_path / "changing", seed=2, **CHANGING[kind])
    alone = load(pretrained=changing)
    torch.testing.assert_close(logits(alone.backbone), by_peft(base, changing))
    for names in (
        {"pretrained": changing, "strong": plain, "weak": plain},
        {"pretrained": plain, "strong": changing, "weak": plain},
        {"pretrained": base, "strong": changing, "weak": changing},
        {"pretrained": changing, "strong": plain, "weak": base},
    ):
        with pytest.raises(LatentRefError, match="latentref convert") as caught:
            load(**names)
        assert "\n" not in str(caught.value)
        assert changing in str(caught.value)
        assert "does not fit" not in str(caught.value)


def test_loading_adapters_gives_no_warning(base, plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(pretrained=plain, strong=base, weak=plain)


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_adapters_of_types_that_peft_does_not_mix_have_bases_of_their_own(
    base, plain, tmp_path, kind
):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    peft_model = get_peft_model(model, OTHER_TYPES[kind])
    for weight in peft_model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    other = str(tmp_path / "other")
    peft_model.save_pretrained(other)
    loaded = load(pretrained=plain, strong=other, weak=plain)
    torch.testing.assert_close(logits(loaded.backbone), by_peft(base, plain))
    torch.testing.assert_close(logits(loaded.strong), by_peft(base, other))
    assert loaded.weak.model is loaded.backbone.model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "NEXT_YEARS"}, "'NEXT_YEARS'.*does not know; install the release of peft"),
        ({"peft_type": None}, "peft_type=None"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"num_virtual_tokens": 4}, "virtual tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base at random"),
    ],
)
def test_adapters_that_are_unknown_or_cannot_act_on_thoughts_are_refused_with_the_reason(
    base, tmp_path, values, message
):
    adapter = Path(save_adapter(base, tmp_path / "adapter", seed=1))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **values}))
    with pytest.raises(LatentRefError, match=message) as caught:
        load(pretrained=str(adapter))
    assert "\n" not in str(caught.value)


def test_settings_alone_show_whether_an_adapter_changes_its_base():
    whole = {"task_type": "CAUSAL_LM", "inference_mode": True, "target_modules": ["q_proj"]}
    for kind in ("pissa", "olora", "all biases", "own biases"):
        assert changes_base({**whole, **CHANGING[kind]})
    for init in (True, False, "gaussian", "orthogonal"):
        assert not changes_base({**whole, "init_lora_weights": init})


@pytest.mark.parametrize("init", [True, False, "gaussian", "pissa", "olora", "orthogonal"])
def test_starts_that_do_not_change_the_base_at_random_are_not_counted_as_such(init):
    before = torch.get_rng_state()
    assert not changes_base_at_random(
        {"init_lora_weights": init, "r": 64, "task_type": "CAUSAL_LM"}
    )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (4, 8), (2, 3, 5)])
def test_a_census_notices_one_changed_bit_and_two_swapped_values(dtype, shape):
    torch.manual_seed(0)
    weight = (100 * torch.rand(shape)).to(dtype)
    model = torch.nn.Module()
    model.register_buffer("weight", weight)
    census = Census(model)
    assert census.first_change(model) is None
    flat, kind = weight.view(-1), torch.uint8
    flat.view(kind)[-1] ^= 1
    assert census.first_change(model) == "weight"
    flat.view(kind)[-1] ^= 1
    assert census.first_change(model) is None
    if len(flat) > 1:
        first, last = flat[0].clone(), flat[-1].clone()
        flat[0], flat[-1] = last, first
        assert census.first_change(model) == "weight"


def test_a_census_notices_a_tensor_that_was_replaced_or_is_used_once_more():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    census = Census(model)
    model.append(model[0])
    assert census.first_change(model) in ("0.weight", "0.bias")
    census = Census(model)
    model[1].bias = torch.nn.Parameter(model[1].bias.detach().clone())
    assert census.first_change(model) == "1.bias"
