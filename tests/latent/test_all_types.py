"""Every causal language model of transformers: refused in one line, or right to 1e-4.

As many types as can be built small here; which is which depends on the installed transformers.
"""

from __future__ import annotations

import inspect
import logging
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch
from tiny import VOCAB_SIZE, random_ids, tiny_tokenizer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.probe import check_model
from lm_eval_latentref.latent.reasoner import Reasoner

SECONDS = 60.0
"""Of processor time: types that come after it are left out."""

MAX_WEIGHTS = 3_000_000

MIN_TRIED, MIN_EQUAL = 60, 30
"""So that a change of transformers which leaves nothing to compare is noticed."""

_SIZES = {
    4: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
    "num_decoder_layers num_encoder_layers "
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads num_key_value_heads "
    "encoder_attention_heads num_kv_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts attention_heads",
    2: "num_experts_per_tok moe_topk moe_k top_k_experts "
    "num_experts_per_token n_activated_experts experts_per_token",
    1: "n_group topk_group n_shared_experts num_shared_experts",
    8: "head_dim rotary_dim qk_rope_head_dim qk_nope_head_dim v_head_dim query_pre_attn_scalar "
    "kv_channels global_head_dim attention_head_dim",
    16: "q_lora_rank kv_lora_rank moe_intermediate_size",
    32: "hidden_size n_embd d_model dim embed_dim embedding_size word_embed_proj_dim input_dim "
    "hidden_size_per_layer_input",
    48: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_ff "
    "shared_expert_intermediate_size inner_dim expert_ffn_hidden_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len ctx_len",
    VOCAB_SIZE: "vocab_size vocab_size_per_layer_input",
}
_SMALL = {field: size for size, fields in _SIZES.items() for field in fields.split()}
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CONTEXTS = [random_ids(length, seed=length) for length in (9, 5, 12)]
CONTINUATIONS = [[random_ids(3, seed=20), random_ids(2, seed=21)]] * len(CONTEXTS)
THINK = RefinementConfig(latent_steps=2, memory_rate=0.3, search_step_size=0.0)


def small_fields(kind: type, window: int | None) -> dict[str, Any]:
    """Configuration fields that make a model of `kind` small, nested configurations included.

    Args:
        window: the width of attention windows and chunks; None: the default width.
    """
    usual = kind()
    # Not by `getattr`: some fields may not be read where layers differ, others are computed.
    own = vars(usual)
    fields: dict[str, Any] = {field: size for field, size in _SMALL.items() if own.get(field)}
    fields |= {field: 0 for field in _IDS if isinstance(own.get(field), int)}
    if window is not None:
        fields |= {field: window for field in _WINDOWS if own.get(field)}
    for name, part in getattr(kind, "sub_configs", {}).items():
        if inspect.isclass(part) and own.get(name) is not None:
            fields[name] = small_fields(type(own[name]), window)
    return fields


def small_model(kind: type, window: int | None = None) -> Any:
    """A random model of `kind`; None if it cannot be made small."""
    config = kind(**small_fields(kind, window))
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).parameters()
        if sum(weight.numel() for weight in weights) > MAX_WEIGHTS:
            return None
    torch.manual_seed(0)
    for part in (config, config.get_text_config()):
        part.initializer_range = 0.15  # as in `tiny`: far enough from zero
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.float().eval().requires_grad_(False)


def outcome(kind: type) -> str:
    """The result for `kind`: "refused: REASON", "equal", "off by NUMBER" or "not built"."""
    try:
        checked, model = small_model(kind), small_model(kind, window=6)
    except Exception as error:
        return f"not built: {type(error).__name__}: {error}"
    if checked is None or model is None:
        return "not built: large"
    try:
        # Windows are longer than what the probe reads, but not than what is scored then.
        check_model(checked, "tiny")
        loaded = LoadedSet(
            tokenizer=tiny_tokenizer(markers=False),
            backbone=LoadedModel(model=model, identity={"name": "tiny"}),
        )
        scores = Reasoner(loaded, THINK, max_length=30).score(CONTEXTS, CONTINUATIONS, max_rows=9)
    except LatentRefError as error:
        return f"refused: {error}"
    except Exception:
        return f"failed: {traceback.format_exc()}"
    off = max(abs(ours - right) for ours, right in _pairs(model, scores))
    return "equal" if off <= 1e-4 else f"off by {off:.2g} nats"


@torch.no_grad()
def _pairs(model: Any, scores: Any) -> Iterator[tuple[float, float]]:
    for context, continuations, row in zip(CONTEXTS, CONTINUATIONS, scores, strict=True):
        prefix = oracle.prefix_embeds(context, THINK, None, model)
        for continuation, score in zip(continuations, row, strict=True):
            yield score.log_likelihood, oracle.log_likelihood(prefix, continuation, model)[0]


@pytest.mark.slow
def test_each_is_refused_in_one_line_or_equals_the_naive_loop(capsys):
    transformers_logging.set_verbosity(logging.CRITICAL)
    outcomes: dict[str, dict[str, str]] = defaultdict(dict)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
            if not kind.__module__.startswith("transformers."):
                continue  # remote code of another test, which transformers keeps in this mapping
            if time.process_time() - start > SECONDS:
                break
            what, _, why = outcome(kind).partition(":")
            outcomes[what][kind.model_type] = why
    transformers_logging.set_verbosity_warning()
    with capsys.disabled():
        print({what: len(kinds) for what, kinds in outcomes.items()})
    tried = sum(map(len, outcomes.values())) - len(outcomes["not built"])
    assert {what: kinds for what, kinds in outcomes.items() if what not in _GOOD} == {}
    assert not any("\n" in why for why in outcomes["refused"].values())
    assert tried >= MIN_TRIED
    assert len(outcomes["equal"]) >= MIN_EQUAL


_GOOD = ("equal", "refused", "not built")
