"""A model that lacks a property the thought loop relies on is refused; all others pass."""

from __future__ import annotations

import logging
import warnings

import flash
import pytest
import torch
import transformers
from odd import OddConfig, OddForCausalLM, odd_model
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from tiny_checkpoints import save_folder
from transformers import AutoModelForCausalLM, dynamic_module_utils

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.lengths import check_length, check_table
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.probe import check_model
from lm_eval_latentref.latent.reasoner import Reasoner


@pytest.mark.parametrize(
    ("trait", "named"),
    [
        ("scales what it embeds", "without thoughts"),
        (
            "looks ids up a second time",
            "token ids up in 'model.others' besides its input embedding",
        ),
        ("looks ids up by their embeddings", "not the embedding of a token"),
        ("keeps no cache", "in two steps"),
        ("has windows in its cache alone", "in two steps"),
        ("attends to what comes later", "in two steps"),
        ("counts positions by columns", "padding"),
        ("ignores the mask", "padding"),
        ("lets branches see each other", "branches"),
        ("drops embeddings", "`generate` takes embeddings"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_trait_is_refused_in_one_line_that_names_the_property(trait, named, dtype):
    with pytest.raises(LatentRefError, match=named) as refused:
        check_model(odd_model(trait).to(dtype), "some/model")
    assert str(refused.value).startswith("some/model (odd)")
    assert "\n" not in str(refused.value)


def test_states_that_are_no_inputs_are_refused_by_their_width():
    config = transformers.ElectraConfig(
        **{"vocab_size": 300, "hidden_size": 32, "embedding_size": 16, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "is_decoder": True},
    )
    with pytest.raises(LatentRefError, match=r"as wide as its input embeddings \(32 and 16\)"):
        check_model(AutoModelForCausalLM.from_config(config).eval(), "some/model")


def test_the_width_of_a_thought_is_that_of_what_is_fed():
    config = transformers.OPTConfig(
        **{"vocab_size": 300, "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    check_model(model, "some/model")
    loaded = LoadedSet(
        tokenizer=tiny_tokenizer(markers=False),
        backbone=LoadedModel(model=tiny_model("opt"), identity={"name": "backbone"}),
        strong=(reference := LoadedModel(model=model, identity={"name": "narrow"})),
        weak=reference,
    )
    with pytest.raises(LatentRefError, match=r"width 16, but the .* 32"):
        Reasoner(loaded, RefinementConfig(latent_steps=1, search_step_size=1.0))
    half_widths = RefinementConfig.parse({"search_step_size": "0.3*d/2"})
    width = Network(model).hidden_size
    assert half_widths.for_width(width).search_step_size == pytest.approx(0.3 * 16 / 2)


def test_a_head_that_calls_its_decoder_by_position_is_read_right():
    assert check_model(odd_model(), "some/model") is None


@pytest.mark.parametrize("trait", ["", "counts positions by columns", "keeps no cache"])
def test_remote_code_is_probed_when_its_folder_is_loaded(trait, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = odd_model(trait)
    OddConfig.register_for_auto_class()
    OddForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    folder = save_folder(model, tmp_path / "folder")
    if not trait:
        load(folder, trust_remote_code=True, device="cpu")
        return
    with pytest.raises(LatentRefError, match=r"folder \(odd\) cannot be used"):
        load(folder, trust_remote_code=True, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_passes(family, dtype):
    assert check_model(tiny_model(family).to(dtype), family) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_families_pass_with_attention_that_takes_windows_and_no_masks(family):
    flash.register()
    config = tiny_model(family).config
    model = AutoModelForCausalLM.from_config(config, attn_implementation=flash.NAME).eval()
    model.load_state_dict(tiny_model(family).state_dict())
    widths = [getattr(module, "sliding_window", None) for module in model.modules()]
    check_model(model, family)
    assert widths == [getattr(module, "sliding_window", None) for module in model.modules()]


def test_it_takes_few_short_forwards_and_is_neither_seen_nor_remembered(caplog, capsys):
    model, sizes = tiny_model("llama"), []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs.get("inputs_embeds")), with_kwargs=True
    )
    state = torch.get_rng_state()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(model, "llama")
    handle.remove()
    assert len(sizes) <= 10
    assert all(embeds.shape[0] * embeds.shape[1] <= 16 for embeds in sizes if embeds is not None)
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.model._forward_pre_hooks


_LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 20}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"index_topk": 8}, 8),
        ({"keep_window_size": 8}, 8),
        ({"attn_temperature_tuning": True, "floor_scale": 41}, 20),
        ({"rope_parameters": _LONGROPE}, 20),
        ({"rope_parameters": {"full_attention": _LONGROPE}}, 20),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 64),
    ],
)
def test_lengths_at_which_a_model_changes_are_allowed_up_to_and_refused_beyond(fields, limit):
    config = OddConfig(max_position_embeddings=64)
    for name, value in fields.items():
        setattr(config, name, value)
    check_length(config, limit, "some/model")
    for beyond in (limit + 1, None):
        with pytest.raises(LatentRefError, match=f"give max_length={limit} or less"):
            check_length(config, beyond, "some/model")


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_read_every_length_alike(family):
    assert check_length(tiny_model(family).config, None, family) is None
    linear = transformers.LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert check_length(linear, 10**6, "llama") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_only_a_table_of_positions_ends_what_a_model_can_read(family):
    model = tiny_model(family)
    longest = model.config.max_position_embeddings
    check_table(model, longest, family)
    check_table(model, None, family)
    ids_1L = torch.ones(1, longest + 1, dtype=torch.long)
    try:
        model(input_ids=ids_1L)
    except IndexError:
        with pytest.raises(LatentRefError, match=f"give max_length={longest} or less"):
            check_table(model, longest + 1, family)
    else:
        check_table(model, longest + 1, family)
