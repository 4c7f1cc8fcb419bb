"""What the package rests on in transformers beyond its public calls, in one place.

    decoder = find_decoder(causal_lm)
    head = without_decoder(causal_lm, decoder)
    inputs = {cache_argument(decoder.forward): new_cache(causal_lm), "use_cache": True}

`tests/latent/test_transformers_contract.py` holds each of these against the installed version.

Shape suffixes: B batch, K columns, P pending columns, L new columns, D hidden size, R rows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What a forward may call its cache: transformers 5.24 renamed it to the first."""


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """The name under which `forward` takes a cache; None if its signature names none."""
    names = inspect.signature(forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in names), None)


def own_cache_argument() -> str:
    """The name under which `generate` and transformers' own models take a cache.

    `generate` itself names none: it hands what it does not know to the method looked at here.
    """
    name = cache_argument(GenerationMixin.prepare_inputs_for_generation)
    assert name is not None, "transformers' generate takes no cache"
    return name


def given_arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of `module` by their names, those given by position too."""
    names = inspect.signature(module.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


# The decoder, and the head without it.


def find_decoder(causal_lm: PreTrainedModel) -> nn.Module:
    """The child of `causal_lm` that turns embeddings into final hidden states.

    It is the attribute that `base_model_prefix` names, or else, where a text model kept the prefix
    of the larger model it was split off (Llama 4), the child that has the input embedding. Raises
    AttributeError if there is none.
    """
    named = getattr(causal_lm, causal_lm.base_model_prefix, None)
    if isinstance(named, nn.Module):
        return named
    embedding = causal_lm.get_input_embeddings()
    for child in causal_lm.children():
        if child is not embedding and any(module is embedding for module in child.modules()):
            return child
    raise AttributeError(f"{type(causal_lm).__name__} has no decoder apart from its head")


@dataclass
class _GivenOutput(BaseModelOutputWithPast):
    """A decoder's output that has its hidden states and None for all that a family may add."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenHiddenStates(nn.Module):
    """Stands in for a decoder: what comes in as embeddings goes out as final hidden states.

    What a head reads off its decoder is read off the real one; a decoder within it is this again.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.__dict__["_real"] = decoder

    def __getattr__(self, name: str) -> Any:
        return self if name == "decoder" else getattr(self.__dict__["_real"], name)

    def forward(self, *args: Any, **kwargs: Any) -> _GivenOutput:
        given = given_arguments(self.__dict__["_real"], args, kwargs)
        return _GivenOutput(last_hidden_state=given["inputs_embeds"])


def without_decoder(causal_lm: PreTrainedModel, decoder: nn.Module) -> PreTrainedModel:
    """`causal_lm` with its own forward on top of given hidden states; parameters are shared.

    Soft-capped or scaled logits then come out right in every family, and only for the positions
    asked for.
    """
    head = copy.copy(causal_lm)
    head.__dict__ = {
        # An accelerate hook on the whole model is bound to the original's forward.
        name: value
        for name, value in causal_lm.__dict__.items()
        if name not in ("forward", "_hf_hook", "_old_forward")
    }
    head._modules = {
        name: _GivenHiddenStates(decoder) if child is decoder else child
        for name, child in causal_lm._modules.items()
    }
    return head


# The cache: of each layer, the keys and values of all columns read.


def new_cache(causal_lm: PreTrainedModel) -> DynamicCache:
    """An empty cache of the kinds of layers that `causal_lm` has."""
    return DynamicCache(config=causal_lm.config)


def keeps_columns(causal_lm: PreTrainedModel) -> bool:
    """Whether the cache has of each layer the keys and values of columns, and nothing else.

    State-space and linear-attention layers fold all they read into one state instead; the indexer
    of sparse attention keeps keys of its own.
    """
    kinds = {type(layer) for layer in new_cache(causal_lm).layers}
    return not causal_lm._is_stateful and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def takes_any_mask(causal_lm: PreTrainedModel) -> bool:
    """Whether attention takes a mask (B, 1, L, K) of numbers as it is.

    That is so where it goes through transformers' common interface and nothing is windowed.
    """
    return (
        bool(getattr(causal_lm, "_supports_attention_backend", False))
        and causal_lm.config._attn_implementation in ("sdpa", "eager")
        and all(type(layer) is DynamicLayer for layer in new_cache(causal_lm).layers)
    )


def record_past(cache: DynamicCache) -> None:
    """Let `crop` take columns back where a window has forgotten what came before them."""
    cache.activate_past_recording()


def crop(cache: DynamicCache, num_columns: int) -> None:
    """Forget the newest columns."""
    cache.crop(-num_columns)


def fork(cache: DynamicCache, rows_R: Tensor | None) -> DynamicCache:
    """A cache that goes on by itself, with `rows_R` of this one; tensors are shared until then."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    if rows_R is not None:
        for layer in branch.layers:
            if layer.is_initialized:
                layer.batch_select_indices(rows_R.to(layer.keys.device))
    return branch


def join(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of all `caches`, which have read as many columns each, in the first; all end here.

    Layer by layer, so that nothing but one layer is in memory twice.
    """
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if layers[0].is_initialized:
            layers[0].keys = torch.cat([layer.keys for layer in layers])
            layers[0].values = torch.cat([layer.values for layer in layers])
        for layer in layers[1:]:
            layer.reset()
    return caches[0]


# What `generate` goes on from.


def generation_inputs(
    columns_BK: Tensor, mask_BK: Tensor, *, cache: DynamicCache, num_read: int, pending_BPD: Tensor
) -> dict[str, Any]:
    """Arguments with which `generate` reads the pending columns and writes on from there.

    `generate` takes the embeddings of all columns and cuts off as many as the cache has read, so
    those are never looked at and are given as zeros.

    Args:
        columns_BK: ids for logits processors; new tokens follow them.
        mask_BK: which columns are real.
        num_read: how many columns `cache` has read.
    """
    num_rows, _, size = pending_BPD.shape
    return {
        "input_ids": columns_BK,
        "attention_mask": mask_BK.long(),
        "inputs_embeds": torch.cat(
            [pending_BPD.new_zeros(num_rows, num_read, size), pending_BPD], dim=1
        ),
        own_cache_argument(): cache,
        # The cache is ours: a kind named by the model's generation config would be another.
        "cache_implementation": None,
    }


@contextmanager
def silence() -> Iterator[None]:
    """Nothing that transformers logs or shows is seen while this is open."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


# Where weights are.


def execution_device(module: nn.Module) -> torch.device:
    """Where `module` computes. Offloaded weights lie on "meta"; accelerate's hook knows better."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device
