"""The models of the device bench: real weights with adapters, and shapes with random weights.

    reasoner = build("qwen2.5-1.5b", device=torch.device("cuda"), dtype="bfloat16")
    contexts = questions(reasoner, 64)

Random weights are made where they are used and never stored; a shape of them costs what the real
model costs. Every set has a backbone and two references, T = 6 with refinement. Knows no clock.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from lm_eval_latentref.bench.memory import write_checkpoints
from lm_eval_latentref.bench.refinement import settings
from lm_eval_latentref.bench.sides import prosqa_prompts
from lm_eval_latentref.bench.train import prosqa_rows
from lm_eval_latentref.checkpoints.loading import (
    LoadedModel,
    LoadedSet,
    load,
    load_tokenizer,
    resolve,
)
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.reasoner import Reasoner

ADAPTERS = "smollm2-135m-base"
"""The weights of that base with three random LoRA adapters, not the trained set on it."""

SHAPES: dict[str, Any] = {
    "qwen2.5-1.5b": lambda: Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "llama-3.2-3b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "tiny": lambda: LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
"""Configurations by name; "tiny" is for a look at the bench itself."""

NAMES = (ADAPTERS, *SHAPES)


def check_names(names: list[str]) -> None:
    """Raise LatentRefError for a model that is not one of `NAMES`."""
    for name in names:
        if name not in NAMES:
            raise LatentRefError(
                f"--models {name}: it must be one or more of {', '.join(NAMES)}, "
                "with commas between"
            )


def build(
    name: str, *, device: torch.device, dtype: str, pretrained: str | None = None
) -> Reasoner:
    """The set `name` on `device`, with refined thoughts; its text does not end before its time."""
    if name == ADAPTERS:
        reasoner = _adapters(device, dtype, pretrained)
    else:
        reasoner = _random(name, device, dtype)
    causal_lm = reasoner.backbone.causal_lm
    # Every document then takes the same number of tokens.
    causal_lm.generation_config.eos_token_id = None
    return reasoner


def questions(reasoner: Reasoner, num: int) -> list[Tokens]:
    """ProsQA questions as token ids; a random model's come from pieces of about that length."""
    vocabulary = reasoner.backbone.causal_lm.get_input_embeddings().weight.shape[0]
    if reasoner.loaded.backbone.source is None:
        rows = prosqa_rows(num)
        return [tuple(1 + token % (vocabulary - 1) for token in row.context) for row in rows]
    return [tuple(reasoner.tokenizer.encode(text)) for text in prosqa_prompts(num)]


def _adapters(device: torch.device, dtype: str, pretrained: str | None) -> Reasoner:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(folder, pretrained, dtype)
        backbone, strong, weak = (str(Path(folder) / name) for name in ("f", "strong", "weak"))
        config = settings(AutoConfig.from_pretrained(Path(folder) / "base").hidden_size)
        return load(
            backbone,
            strong=strong,
            weak=weak,
            device=str(device),
            dtype=dtype,
            latent_steps=config.latent_steps,
            memory_rate=config.memory_rate,
            search_step_size=config.search_step_size,
            latent_markers="none",
        )


def _random(name: str, device: torch.device, dtype: str) -> Reasoner:
    identity = {"name": f"random weights in the shape of {name}"}
    backbone, strong, weak = (
        LoadedModel(model=_random_model(name, seed, device, dtype), identity=identity)
        for seed in range(3)
    )
    # It reads no text: any tokenizer without markers will do.
    loaded = LoadedSet(
        tokenizer=load_tokenizer(resolve(pretrained="hops-small").backbone),
        backbone=backbone,
        strong=strong,
        weak=weak,
    )
    config = settings(backbone.model.config.hidden_size)
    return Reasoner(loaded, dataclasses.replace(config, latent_markers="none"))


def _random_model(name: str, seed: int, device: torch.device, dtype: str) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = SHAPES[name]()
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)
