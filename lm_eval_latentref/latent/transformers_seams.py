"""Everything in transformers beyond its public calls that the package relies on.

    decoder = find_decoder(causal_lm)
    head = without_decoder(causal_lm, decoder)
    inputs = {cache_argument(decoder.forward): new_cache(causal_lm), "use_cache": True}

`tests/latent/test_transformers_contract.py` checks each of these on the installed version.

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
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of the cache argument of a forward; transformers 5.24 renamed it to the first."""

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Fields of a configuration that say how many columns a layer sees, if not all."""


MIN_SPARE = 32
"""Room for so many columns is left at least when a cache layer grows."""


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """The name of the argument of `forward` that takes a cache; None if it has none."""
    names = inspect.signature(forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in names), None)


def own_cache_argument() -> str:
    """The name of the argument in which `generate` and transformers' own models take a cache.

    `generate` passes arguments that its signature does not name to
    `prepare_inputs_for_generation`, so that method's signature is read.
    """
    name = cache_argument(GenerationMixin.prepare_inputs_for_generation)
    assert name is not None, "transformers' generate takes no cache"
    return name


def has_causal_model(config: Any) -> bool:
    """Whether transformers itself has a causal language model for `config`."""
    return type(config) in AutoModelForCausalLM._model_mapping


def attention_of(causal_lm: PreTrainedModel) -> str | None:
    """The implementation of attention that the model uses, such as "sdpa"."""
    name: str | None = causal_lm.config._attn_implementation
    return name


def generation_default(name: str) -> Any:
    """The value of `name` that `generate` uses if none is given; None for other names."""
    return GenerationConfig._get_default_generation_params().get(name)


def given_arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of `module` by name, including those given by position."""
    names = inspect.signature(module.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


# The decoder, and the head without it.


def find_decoder(causal_lm: PreTrainedModel) -> nn.Module:
    """The child of `causal_lm` that turns embeddings into final hidden states.

    It is the attribute that `base_model_prefix` names. A text model that kept the prefix of the
    larger model it was split from (Llama 4) has no such attribute; there it is the child that holds
    the input embedding. Raises AttributeError if there is none.
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
    """A decoder's output: hidden states, and None for every attribute that a family may add."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenHiddenStates(nn.Module):
    """Replaces a decoder: returns the embeddings it is given as final hidden states.

    Attributes that a head reads from its decoder come from the real one, except `decoder`, which is
    this object itself.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.__dict__["_real"] = decoder

    def __getattr__(self, name: str) -> Any:
        return self if name == "decoder" else getattr(self.__dict__["_real"], name)

    def forward(self, *args: Any, **kwargs: Any) -> _GivenOutput:
        given = given_arguments(self.__dict__["_real"], args, kwargs)
        return _GivenOutput(last_hidden_state=given["inputs_embeds"])


def limit_text(causal_lm: nn.Module, num_ids: int) -> None:
    """Let ids from `num_ids` on never be predicted, in every forward of the whole model."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        output.logits[..., num_ids:] = -torch.inf

    causal_lm.register_forward_hook(hook)


def without_decoder(causal_lm: PreTrainedModel, decoder: nn.Module) -> PreTrainedModel:
    """A copy of `causal_lm` whose forward starts from given hidden states; parameters are shared.

    Because the forward is the model's own, logits are capped or scaled as the family does it, and
    they are computed only for the positions given.
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


def residual_branches(causal_lm: PreTrainedModel) -> list[nn.Module]:
    """The modules whose outputs are added to the residual stream: attention and MLP of each layer.

    They are the two children of a layer that hold linear layers. Empty if a layer has others, or
    norms behind these two, whose outputs would be what is added.
    """
    branches: list[nn.Module] = []
    for layer in _layers(causal_lm):
        linear = [child for child in layer.children() if _holds_linear(child)]
        others = [child for child in layer.children() if not _holds_linear(child)]
        num_norms = sum(bool(list(child.parameters())) for child in others)
        if len(linear) != 2 or num_norms > 2 or any(_is_linear(child) for child in linear):
            return []
        branches += linear
    return branches


def _layers(causal_lm: PreTrainedModel) -> list[nn.Module]:
    """The layers of the decoder: its longest list of modules."""
    lists = [m for m in find_decoder(causal_lm).modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _holds_linear(module: nn.Module) -> bool:
    return any(_is_linear(each) for each in module.modules())


# The cache: the keys and values of all columns read, for each layer.


class GrowingLayer(DynamicLayer):
    """A layer with room for further columns, which are written in place.

    A DynamicLayer copies all columns whenever it reads more. Layers that share their columns with a
    fork, and those that keep an autograd graph, do so here too.
    """

    keys: Any
    values: Any
    _room: tuple[Tensor, Tensor] | None = None
    """Tensors that keys and values are the first columns of, if no other layer shares them."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds new columns (B, H, L, D), and returns the keys and values of all (B, H, K, D)."""
        if key_states.requires_grad or value_states.requires_grad:
            self._room = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        num_columns = past + key_states.shape[-2]
        if self._room is None or not self._fits(num_columns):
            self._room = (
                _with_room(self.keys, key_states, past, num_columns),
                _with_room(self.values, value_states, past, num_columns),
            )
        keys_BHRD, values_BHRD = self._room
        keys_BHRD[..., past:num_columns, :] = key_states
        values_BHRD[..., past:num_columns, :] = value_states
        self.keys = keys_BHRD[..., :num_columns, :]
        self.values = values_BHRD[..., :num_columns, :]
        return self.keys, self.values

    def share(self) -> GrowingLayer:
        """Another layer with these columns; neither writes where the other reads."""
        self._room = None
        return copy.copy(self)

    def _fits(self, num_columns: int) -> bool:
        # Whoever replaced the keys, for other rows say, took them out of the room.
        assert self._room is not None
        room_BHRD = self._room[0]
        return self.keys.data_ptr() == room_BHRD.data_ptr() and num_columns <= room_BHRD.shape[-2]


def _with_room(columns_BHKD: Tensor, new_BHLD: Tensor, past: int, num_columns: int) -> Tensor:
    """A tensor with the first `past` columns of the given ones and room for more."""
    num_rows, num_heads, _, size = new_BHLD.shape
    spare = max(MIN_SPARE, num_columns // 8)
    room_BHRD = new_BHLD.new_empty(num_rows, num_heads, num_columns + spare, size)
    if past:
        room_BHRD[..., :past, :] = columns_BHKD
    return room_BHRD


def new_cache(causal_lm: PreTrainedModel) -> DynamicCache:
    """An empty cache for the kinds of layers that `causal_lm` has."""
    cache = DynamicCache(config=causal_lm.config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def keeps_columns(causal_lm: PreTrainedModel) -> bool:
    """Whether each layer's cache holds the keys and values of columns and nothing else.

    State-space and linear-attention layers instead fold all columns into one state; the indexer of
    sparse attention keeps keys of its own.
    """
    kinds = {type(layer) for layer in new_cache(causal_lm).layers}
    return not causal_lm._is_stateful and kinds <= {GrowingLayer, DynamicSlidingWindowLayer}


def keeps_every_column(causal_lm: PreTrainedModel) -> bool:
    """Whether each layer's cache holds the keys and values of all columns, without a window."""
    layers = new_cache(causal_lm).layers
    return keeps_columns(causal_lm) and all(type(layer) is GrowingLayer for layer in layers)


@contextmanager
def narrow_windows(causal_lm: PreTrainedModel, num_columns: int) -> Iterator[None]:
    """Windows and chunks of attention are `num_columns` wide at most while this is open.

    Masks and caches are made by what the configuration says when they are made. Flash attention
    takes no mask, but the width that each layer has copied from the configuration.
    """
    places = [causal_lm.config.get_text_config(), *causal_lm.modules()]
    usual = [
        (place, name, width)
        for place in places
        for name in WINDOWS
        if type(width := getattr(place, name, None)) is int
    ]
    try:
        for place, name, width in usual:
            setattr(place, name, min(width, num_columns))
        yield
    finally:
        for place, name, width in usual:
            setattr(place, name, width)


def takes_any_mask(causal_lm: PreTrainedModel) -> bool:
    """Whether attention applies a mask (B, 1, L, K) of numbers as it is.

    It does if it goes through transformers' common interface and no layer has a window.
    """
    return (
        bool(getattr(causal_lm, "_supports_attention_backend", False))
        and attention_of(causal_lm) in ("sdpa", "eager")
        and keeps_every_column(causal_lm)
    )


def record_past(cache: DynamicCache) -> None:
    """Make `crop` work in windowed layers, which otherwise drop columns that leave the window."""
    cache.activate_past_recording()


def crop(cache: DynamicCache, num_columns: int) -> None:
    """Remove the newest columns."""
    cache.crop(-num_columns)


def fork(cache: DynamicCache, rows_R: Tensor | None) -> DynamicCache:
    """An independent cache with `rows_R` of this one; tensors are shared until one is extended."""
    branch = copy.copy(cache)
    branch.layers = [
        layer.share() if isinstance(layer, GrowingLayer) else copy.copy(layer)
        for layer in cache.layers
    ]
    if rows_R is not None:
        for layer in branch.layers:
            if layer.is_initialized:
                layer.batch_select_indices(rows_R.to(layer.keys.device))
    return branch


def spread(cache: DynamicCache, num_rows: int, columns_BK: Tensor | None) -> DynamicCache:
    """A cache of `num_rows` rows, made of columns of the single row of `cache`.

    Args:
        columns_BK: which column lies where in each row; None: all of them, in their order.
    """
    branch = fork(cache, None)
    for layer in branch.layers:
        if layer.is_initialized:
            layer.keys = _spread(layer.keys, num_rows, columns_BK)
            layer.values = _spread(layer.values, num_rows, columns_BK)
    return branch


def _spread(row_1HKD: Tensor, num_rows: int, columns_BK: Tensor | None) -> Tensor:
    if columns_BK is None:
        return row_1HKD.expand(num_rows, -1, -1, -1)
    columns_BK = columns_BK.to(row_1HKD.device)
    picked = row_1HKD[0].index_select(1, columns_BK.flatten())
    return picked.unflatten(1, columns_BK.shape).transpose(0, 1)


def join(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Put the rows of all `caches`, which must have read equally many columns, into the first.

    It works layer by layer, so that only one layer is in memory twice. The other caches are empty
    afterwards.
    """
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if layers[0].is_initialized:
            layers[0].keys = torch.cat([layer.keys for layer in layers])
            layers[0].values = torch.cat([layer.values for layer in layers])
        for layer in layers[1:]:
            layer.reset()
    return caches[0]


# The inputs of `generate`.


def generation_inputs(
    columns_BK: Tensor, mask_BK: Tensor, *, cache: DynamicCache, num_read: int, pending_BPD: Tensor
) -> dict[str, Any]:
    """Arguments with which `generate` reads the pending columns and continues from there.

    `generate` takes the embeddings of all columns and cuts off as many as the cache has read. Those
    are not used; they are given as nan, so that a model which reads them again gives no text.

    Args:
        columns_BK: ids for logits processors; `generate` appends the new tokens to them.
        mask_BK: which columns are real.
        num_read: how many columns `cache` has read.
    """
    num_rows, _, size = pending_BPD.shape
    return {
        "input_ids": columns_BK,
        "attention_mask": mask_BK.long(),
        "inputs_embeds": torch.cat(
            [pending_BPD.new_full((num_rows, num_read, size), torch.nan), pending_BPD], dim=1
        ),
        own_cache_argument(): cache,
        # The cache above is used, not one of the kind that the model's generation config names.
        "cache_implementation": None,
    }


@contextmanager
def silence() -> Iterator[None]:
    """Silence transformers' log messages and progress bars inside this block."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


# Where weights are.


def execution_device(module: nn.Module) -> torch.device:
    """The device `module` computes on; from accelerate's hook if weights are offloaded."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device
