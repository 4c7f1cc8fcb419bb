"""Every argument of the model is part of a response cache's key, or cannot change an answer."""

from __future__ import annotations

import inspect

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tiny import tiny_tokenizer
from tiny_lm import REFINED, latentref

from lm_eval_latentref.checkpoints.arguments import OWN_NAMES
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.arguments import (
    DESCRIBED,
    WITHOUT_EFFECT,
    check_device,
    check_values,
    decisive,
    tokenizer_digest,
)

HFLM_NAMES = inspect.signature(HFLM.__init__).parameters.keys() - {"self", "kwargs"}
OF_FROM_PRETRAINED = {
    *("adapter_kwargs", "attn_implementation", "code_revision", "device_map", "device_mesh"),
    *("experts_implementation", "generation_config", "key_mapping", "low_cpu_mem_usage"),
    *("max_memory", "offload_buffers", "offload_folder", "offload_state_dict", "proxies"),
    *("quantization_config", "state_dict", "tp_plan", "tp_size", "use_kernels", "variant"),
    *("dtype", "torch_dtype", "weights_only"),
}
OF_A_CONFIG = {"sliding_window", "rope_parameters", "max_position_embeddings"}
ALL_NAMES = sorted({*HFLM_NAMES, *OWN_NAMES, *OF_FROM_PRETRAINED, *OF_A_CONFIG})


@pytest.mark.parametrize("name", ALL_NAMES)
def test_an_argument_changes_the_key_or_is_known_to_change_no_answer(name):
    changed = decisive({}) != decisive({name: "another"})
    assert changed is (name not in DESCRIBED | WITHOUT_EFFECT)


def test_what_was_said_of_an_argument_is_not_said_twice():
    assert not DESCRIBED & WITHOUT_EFFECT


def test_a_default_that_is_given_is_no_other_key():
    assert decisive({}) == decisive({"truncation": False, "softmax_dtype": None})


def key(lm):
    return lm.reasoner.settings(), tokenizer_digest(lm.tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"latent_steps": 2},
        {"memory_rate": 0.5},
        {"search_step_size": 1.0},
        {"search_steps": 2},
        {"search_gradient": "through"},
        {"latent_markers": "none"},
        {"strong": "weak"},
        {"weak": "strong"},
        {"pretrained": "strong"},
        {"dtype": "bfloat16"},
    ],
)
def test_arguments_that_settings_describe_change_them(folders, change):
    named = {k: folders.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    name = change.get("pretrained", "marked")
    named.pop("pretrained", None)
    assert key(latentref(folders, name, **{**REFINED, **named})) != key(
        latentref(folders, **REFINED)
    )


def test_a_tokenizer_is_known_by_what_it_does(folders):
    tokenizer, other = tiny_tokenizer(), tiny_tokenizer()
    assert tokenizer_digest(tokenizer) == tokenizer_digest(other)
    other(["a", "longer text"], padding="longest", truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(other)
    other.add_tokens(["<new>"])
    assert tokenizer_digest(tokenizer) != tokenizer_digest(other)


@pytest.mark.parametrize("name", sorted(HFLM_NAMES - DESCRIBED - {"delta"}))
def test_a_value_of_a_type_that_hflm_does_not_take_is_refused(name):
    with pytest.raises(LatentRefError, match=f"^{name}="):
        check_values({name: object()})


def test_defaults_are_values_that_can_be_meant():
    parameters = inspect.signature(HFLM.__init__).parameters
    defaults = {name: parameters[name].default for name in HFLM_NAMES - {"pretrained"}}
    given = {"softmax_dtype": torch.float32, "max_length": 12, "think_end_token": 3}
    for values in (defaults, given):
        assert check_values(values) is None


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_that_is_there(device):
    assert check_device(device) is None


@pytest.mark.parametrize("device", ["cuda:99", "nowhere", "", 3.5])
def test_a_device_that_is_not_there(device):
    with pytest.raises(LatentRefError, match=r"^device="):
        check_device(device)
