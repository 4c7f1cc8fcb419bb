"""Checks the arguments of the lm-eval class, and selects the arguments that can change answers.

    check_values({"max_length": "many"})                      # LatentRefError: max_length=many: ...
    decisive({"sliding_window": 64, "batch_size": 8})         # {"sliding_window": 64, ...}

Mistakes are reported before any weight is read.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_latentref.checkpoints.arguments import check_device
from lm_eval_latentref.checkpoints.sets import NAMES
from lm_eval_latentref.checkpoints.written import log_likelihoods, sample_ids
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.lm_eval_seams import DEFAULT_DEVICE
from lm_eval_latentref.latent.config import OPTION_NAMES

DESCRIBED = frozenset([*NAMES, *OPTION_NAMES, "attn_implementation"])
"""Arguments that the settings of a run describe already: checkpoints, thoughts and attention.

`dtype` is not among them, because the settings contain only the backbone's dtype."""

WITHOUT_EFFECT = frozenset(
    # First batch sizes and devices, then the arguments for fetching files; tokens are secrets.
    {
        "batch_size",
        "max_batch_size",
        "logits_cache",
        "device",
        "device_map",
        "parallelize",
        "max_memory_per_gpu",
        "max_cpu_memory",
        "max_memory",
        "offload_folder",
        "offload_buffers",
        "offload_state_dict",
        "low_cpu_mem_usage",
        "token",
        "use_auth_token",
        "cache_dir",
        "force_download",
        "local_files_only",
        "proxies",
        "use_safetensors",
        "weights_only",
    }
)
"""Arguments that cannot change an answer."""


def decisive(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that can change an answer, as JSON values; HFLM's defaults are included."""
    parameters = inspect.signature(HFLM.__init__).parameters.values()
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not parameter.empty
    }
    return {
        name: json.loads(json.dumps(value, default=str, sort_keys=True))
        for name, value in {**defaults, **given}.items()
        if name not in DESCRIBED | WITHOUT_EFFECT
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of everything that determines how a tokenizer encodes text."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        parts = json.loads(backend.to_str())
        # These two depend on the tokenizer's last call.
        parts = {k: v for k, v in parts.items() if k not in ("truncation", "padding")}
    else:
        parts = {"vocabulary": tokenizer.get_vocab()}
    parts["special"] = tokenizer.special_tokens_map
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_digest(model: torch.nn.Module, tokenizer: Any) -> str:
    """sha256 of a loaded model's weights, its configurations and log-likelihoods of a few texts.

    The log-likelihoods reveal everything else: the active adapter, its scale, hooks.
    """
    configs = [str(getattr(model, name, None)) for name in ("config", "generation_config")]
    total = hashlib.sha256("\n".join(configs).encode())
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    computed = log_likelihoods(model, sample_ids(tokenizer)).tolist()
    # Two decimals, because the computation is not exactly the same on every machine.
    total.update(str([round(number, 2) for number in computed]).encode())
    return total.hexdigest()


def check_values(given: Mapping[str, Any]) -> None:
    """Raise LatentRefError if a value does not have the type that HFLM declares for it."""
    hints = typing.get_type_hints(HFLM.__init__)
    for name, value in given.items():
        # lm-eval's command line turns a name such as 100 into a number.
        if value is None or name not in hints or name in (*DESCRIBED, "delta"):
            continue
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if not any(_is_a(value, kind) for kind in kinds):
            raise LatentRefError(f"{name}={value}: it must be {_described(kinds)}")
        if name in ("max_length", "max_batch_size") and value < 1:
            raise LatentRefError(f"{name}={value}: it must be an integer >= 1")


def device_or_default(device: Any) -> str:
    """`device`, which must exist, or its default.

    None means the GPU if there is one, else the CPU. lm-eval's default, a GPU, means the CPU on a
    machine without a GPU.
    """
    if device is None or (device == DEFAULT_DEVICE and not torch.cuda.is_available()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return str(device)


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    kind = typing.get_origin(kind) or kind
    if kind is typing.Any or not isinstance(kind, type):
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _described(kinds: tuple[Any, ...]) -> str:
    words = {bool: "True or False", int: "an integer", str: "text", float: "a number"}
    literals = [repr(value) for kind in kinds for value in typing.get_args(kind)]
    plain = [
        words.get(kind, getattr(kind, "__name__", str(kind)))
        for kind in kinds
        if kind is not type(None) and not typing.get_args(kind)
    ]
    return " or ".join([*plain, *literals])
