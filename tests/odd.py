"""A decoder as people write it in remote code, right by itself or with one trait that is not."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class OddConfig(PreTrainedConfig):
    """`trait` says what differs from what the thought loop needs; "" for nothing."""

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
        if attention_mask is not None and attention_mask.dim() == 4:  # of branches, in numbers
            sees = sees if trait == "lets branches see each other" else attention_mask == 0
        elif attention_mask is not None and trait != "ignores the mask":
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
        # Whether branches are read side by side.
        self._supports_attention_backend = config.trait in ("", "lets branches see each other")
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
