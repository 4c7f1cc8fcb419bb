"""A model that cannot do what the loop does is refused by what it cannot do; all others pass."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
import transformers
from tiny import FAMILIES, tiny_model
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.lengths import check_length
from lm_eval_latentref.latent.probe import check_model


class OddConfig(PreTrainedConfig):
    """Of a decoder as people write them, with one trait that makes it differ."""

    model_type = "odd"

    def __init__(self, trait="", **kwargs):
        self.trait, self.vocab_size, self.hidden_size = trait, 300, 32
        self.num_hidden_layers, self.num_attention_heads = 2, 4
        if trait == "has windows in its cache alone":
            self.sliding_window = 32  # more than the probe reads
        super().__init__(**kwargs)


class OddModel(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(64, config.hidden_size)
        self.others = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.ModuleList(nn.Linear(32, 96) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
    ):
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        trait, columns = self.config.trait, x.shape[1]
        if trait == "looks ids up by their embeddings":
            nearest = (x.unsqueeze(2) - self.words.weight).norm(dim=-1).min(-1)
            if nearest.values.max() > 0.01:
                raise ValueError("no token has this embedding")
        if trait == "scales what it embeds" and input_ids is not None:
            x = x * 3
        if trait == "looks ids up a second time" and input_ids is not None:
            x = x + 0 * self.others(input_ids)
        if trait == "keeps no cache":
            cache = None
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None or trait == "counts positions by columns":
            position_ids = torch.arange(past, past + columns)[None]
        x = x + self.places(position_ids)
        sees = torch.ones(columns, past + columns, dtype=torch.bool).tril(past)
        if trait == "attends to what comes later":
            sees = torch.ones_like(sees)
        if attention_mask is not None and trait != "ignores the mask":
            sees = sees & attention_mask.bool()[:, None, None, :]
            sees = sees | torch.eye(columns, past + columns, dtype=torch.bool).roll(past, 1)
        for number, mix in enumerate(self.mix):
            query, key, value = mix(x).view(len(x), columns, 3, 4, 8).permute(2, 0, 3, 1, 4)
            if cache is not None:
                key, value = cache.update(key, value, number)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)
            x = x + mixed.transpose(1, 2).reshape(x.shape)
        return BaseModelOutputWithPast(last_hidden_state=x, cache=cache)


class OddForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OddConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = OddModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.words

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        return_dict=None,
    ):
        given = (input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        if use_cache and cache is None:
            cache = DynamicCache()
        read = self.model(*given)  # by position, as some do
        return CausalLMOutputWithPast(logits=self.lm_head(read.last_hidden_state), cache=read.cache)

    def prepare_inputs_for_generation(self, *args, inputs_embeds=None, **kwargs):
        if self.config.trait == "drops embeddings":
            inputs_embeds = None
        return super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)


def odd_model(trait=""):
    torch.manual_seed(0)
    model = OddForCausalLM(OddConfig(trait=trait))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("trait", "named"),
    [
        ("scales what it embeds", "without thoughts"),
        ("looks ids up a second time", "token ids up in 'model.others' beside its input embedding"),
        ("looks ids up by their embeddings", "no token's embedding"),
        ("keeps no cache", "in two steps"),
        ("has windows in its cache alone", "in two steps"),
        ("attends to what comes later", "in two steps"),
        ("counts positions by columns", "padding"),
        ("ignores the mask", "padding"),
        ("drops embeddings", "`generate` takes embeddings"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_trait_is_refused_in_one_line_that_names_the_property(trait, named, dtype):
    with pytest.raises(LatentRefError, match=named) as refused:
        check_model(odd_model(trait).to(dtype), "some/model")
    assert str(refused.value).startswith("some/model (odd)")
    assert "\n" not in str(refused.value)


def test_a_head_that_calls_its_decoder_by_position_is_read_right():
    check_model(odd_model(), "some/model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_passes(family, dtype):
    check_model(tiny_model(family).to(dtype), family)


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
    check_length(tiny_model(family).config, None, family)
    yarn = transformers.LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0})
    check_length(yarn, 10**6, "llama")
