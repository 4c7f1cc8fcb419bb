"""Tiny random models and tokenizers of every family that is tested, without downloads."""

from __future__ import annotations

import copy
import functools

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lm_eval_latentref.latent.protocol import MARKERS

HIDDEN_SIZE = 32
VOCAB_SIZE = 300

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": HIDDEN_SIZE,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**_SHAPE, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED),
    # Windows shorter than the contexts of the tests.
    "mistral": lambda: transformers.MistralConfig(**_GROUPED, sliding_window=6),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_GROUPED,
        sliding_window=6,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **_GROUPED,
        sliding_window=6,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        word_embed_proj_dim=HIDDEN_SIZE,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SHAPE),
}
FAMILIES = tuple(CONFIGS)


@functools.cache
def _model(family: str, seed: int) -> PreTrainedModel:
    # Weights some way from zero: with the usual 0.02 every hidden state looks alike and a wrong
    # computation would pass.
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    config.initializer_range = 0.15
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def tiny_model(family: str = "gpt2", seed: int = 0) -> PreTrainedModel:
    """A random model of `family` in float32, a fresh copy each time."""
    return copy.deepcopy(_model(family, seed))


@functools.cache
def _tokenizer(markers: tuple[str, ...]) -> PreTrainedTokenizerFast:
    corpus = [
        "Every lempus is a gorpus. Tom is a lempus. Is Tom a gorpus or a wumpus?\n",
        "the average of 3 numbers is 12 . find the sum of them\na ) 36 , b ) 12 , c ) 4\n",
        "### yes\n### no\n### a\n### b\nFirst, add the two. Then halve it.\n",
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKERS),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    if markers:
        fast.add_tokens(list(markers))
    return fast


def tiny_tokenizer(*, markers: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCAB_SIZE` entries, with or without the markers."""
    return copy.deepcopy(_tokenizer(MARKERS if markers else ()))


def random_ids(num_tokens: int, seed: int) -> tuple[int, ...]:
    """Token ids other than the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, VOCAB_SIZE - 8, (num_tokens,), generator=generator).tolist())
