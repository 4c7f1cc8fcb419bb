"""Tiny checkpoints on disk of every kind that can be loaded: folders, raw files, adapters."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from lm_eval_latentref.checkpoints.loading import load_set
from lm_eval_latentref.checkpoints.opening import default_loader, load_tokenizer
from lm_eval_latentref.checkpoints.sets import CheckpointNames, SetPlan, resolve
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.protocol import MARKERS

PLAIN_ROWS = len(tiny_tokenizer(markers=False))
MARKER_ROWS = PLAIN_ROWS + len(MARKERS)
START, END, LATENT = range(PLAIN_ROWS, MARKER_ROWS)


def fresh_model(
    family: str = "gpt2", *, seed: int = 0, rows: int = PLAIN_ROWS, hidden_size: int = 16
) -> PreTrainedModel:
    """A random float32 model with weights large enough that two models clearly differ."""
    shape: dict[str, Any] = {"vocab_size": rows, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=hidden_size, n_layer=2, n_head=2, n_positions=64, **shape
        )
    else:
        config = transformers.LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            **shape,
        )
    config.initializer_range = 0.2
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def grown(model: PreTrainedModel, *, seed: int = 1) -> PreTrainedModel:
    """`model` with random rows for the three markers."""
    old_rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(old_rows + len(MARKERS), mean_resizing=False)
    torch.manual_seed(seed)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[old_rows:] = 0.3 * torch.randn(len(MARKERS), layer.weight.shape[1])
    return model.requires_grad_(False)


def save_folder(model: PreTrainedModel, folder: Path, *, markers: bool | None = False) -> str:
    """`model` in `folder`, with a tokenizer with or without markers, or with none (None)."""
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    if markers is not None:
        tiny_tokenizer(markers=markers).save_pretrained(folder)
    return str(folder)


def coconut_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state dict of facebookresearch/coconut's wrapper around `model`."""
    state = {f"base_causallm.{name}": value for name, value in model.state_dict().items()}
    return {**state, "embedding.weight": model.get_input_embeddings().weight.data}


def save_raw(state: dict[str, Any], path: Path) -> str:
    torch.save(state, path)
    return str(path)


def save_adapter(
    base: str, folder: Path, *, seed: int, markers: bool = False, **config: Any
) -> str:
    """A random LoRA adapter on the folder `base`, with the tokenizer if it knows the markers."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if markers:
        tiny_tokenizer(markers=True).save_pretrained(folder)
        model = grown(model, seed=99)
        model.name_or_path = base
    targets = ["c_attn", "c_fc"] if model.config.model_type == "gpt2" else ["q_proj", "up_proj"]
    options = {"target_modules": targets, "r": 2, "init_lora_weights": False, **config}
    torch.manual_seed(seed)
    peft_model = get_peft_model(model, LoraConfig(**options))
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
        if "lora_" in name:
            parameter.data *= 1.5
    with contextlib.redirect_stderr(io.StringIO()):
        peft_model.save_pretrained(folder)
    return str(folder)


def plan_of(**names: Any) -> SetPlan:
    """The plan that these names resolve to."""
    return resolve(CheckpointNames(**names))


def load(loading: Mapping[str, Any] | None = None, /, **names: Any) -> LoadedSet:
    """The set that these names resolve to, loaded without lm-eval in float32."""
    plan = plan_of(**names)
    return load_set(
        plan,
        load_model=default_loader(dtype="float32", **(loading or {})),
        tokenizer=load_tokenizer(plan.backbone),
    )


@torch.no_grad()
def logits(loaded: LoadedModel | torch.nn.Module, ids: Iterable[int] = (3, 7, 11, 5)) -> Any:
    """Logits for one sequence, with the adapter of `loaded` active."""
    ids_1L = torch.tensor([list(ids)])
    if isinstance(loaded, torch.nn.Module):
        return loaded(ids_1L).logits[0]
    if loaded.adapter is not None:
        loaded.model.base_model.enable_adapter_layers()
        loaded.model.set_adapter(loaded.adapter, inference_mode=True)
    elif hasattr(loaded.model, "disable_adapter"):
        with loaded.model.disable_adapter():
            return loaded.model(ids_1L).logits[0]
    return loaded.model(ids_1L).logits[0]


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The folder of a plain model."""
    return save_folder(fresh_model(), tmp_path / "base")


def failing(call: Callable[..., Any], **names: Any) -> str:
    """The message, of one line, that `call` ends with."""
    with pytest.raises(LatentRefError) as error:
        call(**names)
    message = str(error.value)
    assert "\n" not in message
    return message
