"""Everything beyond the public calls of transformers that the package relies on.

    decoder = find_decoder(causal_lm)
    head = without_decoder(causal_lm, decoder)
    inputs = {cache_argument(decoder.forward): new_cache(causal_lm), "use_cache": True}

`tests/latent/test_transformers_contract.py` checks each of these on the installed version.

Shape suffixes: B batch, K columns read and pending, P pending columns, D hidden size.
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
from transformers.activations import NewGELUActivation
from transformers.integrations import sdpa_attention
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from lm_eval_latentref.latent import branched

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Possible names of a forward's cache argument: the first since transformers 5.24, before that the
second."""

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Configuration fields that limit how many columns a layer attends to."""


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
    """Whether transformers has a causal language model class for `config`."""
    return type(config) in AutoModelForCausalLM._model_mapping


def attention_of(causal_lm: PreTrainedModel) -> str | None:
    """The name of the model's attention implementation, such as "sdpa"."""
    name: str | None = causal_lm.config._attn_implementation
    return name


def generation_default(name: str) -> Any:
    """The default that `generate` uses for the argument `name`; None if it has no default."""
    return GenerationConfig._get_default_generation_params().get(name)


def given_arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments of a call of `module`, positional ones included, by name."""
    names = inspect.signature(module.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


# The decoder, and the head without it.


def find_decoder(causal_lm: PreTrainedModel) -> nn.Module:
    """The child of `causal_lm` that turns embeddings into final hidden states.

    Normally this is the attribute named by `base_model_prefix`. A text model split from a larger
    model may have kept that model's prefix (Llama 4) and lack the attribute; its decoder is the
    child that holds the input embedding. Raises AttributeError if there is no decoder.
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
    """A decoder's output: hidden states, and None for any other attribute that a head may read."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenHiddenStates(nn.Module):
    """A stand-in for a decoder: returns its input embeddings as final hidden states.

    A head may read attributes from its decoder. They come from the real decoder, except `decoder`,
    which is this object.
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
    """Set the logits of all ids from `num_ids` on to -inf in every forward of the whole model."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        output.logits[..., num_ids:] = -torch.inf

    causal_lm.register_forward_hook(hook)


def without_decoder(causal_lm: PreTrainedModel, decoder: nn.Module) -> PreTrainedModel:
    """A copy of `causal_lm` whose forward starts from given hidden states; parameters are shared.

    The forward is the model's own, so it caps or scales logits as that model family does. Logits
    are computed only for the given hidden states.
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

    They are the two children of a layer that contain linear layers. The list is empty if some layer
    does not have exactly two such children, or if it has more than two norms, because then a norm
    follows attention or MLP and its output is added instead.
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
    return any(_is_linear(part) for part in module.modules())


# Attention and its windows.


@contextmanager
def narrow_windows(causal_lm: PreTrainedModel, num_columns: int) -> Iterator[None]:
    """Limit attention windows and chunks to `num_columns` columns inside this block.

    Masks and caches take the width from the configuration at the time they are created. Flash
    attention has no mask and takes the width that each layer copied from the configuration.
    """
    places = [causal_lm.config.get_text_config(), *causal_lm.modules()]
    widths = [
        (place, name, width)
        for place in places
        for name in WINDOWS
        if type(width := getattr(place, name, None)) is int
    ]
    try:
        for place, name, width in widths:
            setattr(place, name, min(width, num_columns))
        yield
    finally:
        for place, name, width in widths:
            setattr(place, name, width)


def takes_any_mask(causal_lm: PreTrainedModel) -> bool:
    """Whether layers without a window apply an additive mask (B, 1, L, K) unchanged.

    They do if attention goes through transformers' common interface.
    """
    has_interface = bool(getattr(causal_lm, "_supports_attention_backend", False))
    return has_interface and attention_of(causal_lm) in ("sdpa", "eager")


@contextmanager
def packed_heads() -> Iterator[None]:
    """On a CPU, query heads that share keys and values read them together inside this block.

    transformers does so for a single column under a mask. For several it copies keys and values for
    each query head, and without a mask torch reads them anew for each: on SmolLM2-135M's three
    query heads a key, two columns after 800 take a quarter of the time in bfloat16, one a fifth.
    """
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _packed_attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = usual


def _packed_attention(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' function for "sdpa", with the query heads of each of the G keys as one."""
    num_rows, num_heads, num_new, _ = query_BHLD.shape
    num_shared = num_heads // key_BGKD.shape[1]
    causal = attention_mask is None and num_new > 1  # torch's own kernel for that is faster
    varies = attention_mask is not None and attention_mask.shape[1] > 1  # from head to head
    adds = any(others.get(name) is not None for name in ("position_bias", "softcap"))
    plain = not (causal or varies or adds or dropout) and key_BGKD.device.type == "cpu"
    if plain and branched.can_attend(query_BHLD, key_BGKD, value_BGKD, attention_mask):
        output = branched.attend(query_BHLD, key_BGKD, value_BGKD, attention_mask, scale=scaling)
        return output.transpose(1, 2).contiguous(), None
    if num_shared == 1 or not plain:
        given = (query_BHLD, key_BGKD, value_BGKD, attention_mask, dropout, scaling)
        return sdpa_attention.sdpa_attention_forward(module, *given, **others)
    if attention_mask is not None:
        attention_mask = attention_mask.repeat(1, 1, num_shared, 1)
    output = nn.functional.scaled_dot_product_attention(
        query_BHLD.reshape(num_rows, key_BGKD.shape[1], num_shared * num_new, -1),
        key_BGKD,
        value_BGKD,
        attn_mask=attention_mask,
        scale=scaling,
    )
    output = output.reshape(num_rows, num_heads, num_new, -1)
    return output.transpose(1, 2).contiguous(), None


_written_out = NewGELUActivation.forward


@contextmanager
def fused_gelu() -> Iterator[None]:
    """Let GPT-2's activation be one operator of torch inside this block, in float32.

    transformers writes the formula out in eight operators, each of which reads and writes memory:
    on a CPU, a fifth of the time of a forward of GPT-2. Results differ by rounding alone.
    """
    NewGELUActivation.forward = _in_one_operator
    try:
        yield
    finally:
        NewGELUActivation.forward = _written_out


def _in_one_operator(module: nn.Module, input: Tensor) -> Tensor:
    if input.dtype != torch.float32:  # rounded after each operator, as the model was trained
        return _written_out(module, input)
    return nn.functional.gelu(input, approximate="tanh")


def is_stateful(causal_lm: PreTrainedModel) -> bool:
    """Whether the model's cache holds a state that cannot be cropped to fewer columns."""
    return bool(causal_lm._is_stateful)


# The inputs of `generate`.


def generation_inputs(
    columns_BK: Tensor, mask_BK: Tensor, *, cache: DynamicCache, num_read: int, pending_BPD: Tensor
) -> dict[str, Any]:
    """Arguments with which `generate` reads the pending columns and continues from there.

    `generate` takes the embeddings of all columns and drops those that the cache has already read.
    The dropped embeddings are given as nan, so that a model which does use them writes no text.

    Args:
        columns_BK: ids for logits processors; `generate` appends the new tokens to them.
        mask_BK: bool, True for real columns.
        num_read: the number of columns that `cache` has read.
        pending_BPD: embeddings of the columns after those.
    """
    num_rows, _, size = pending_BPD.shape
    return {
        "input_ids": columns_BK,
        "attention_mask": mask_BK.long(),
        "inputs_embeds": torch.cat(
            [pending_BPD.new_full((num_rows, num_read, size), torch.nan), pending_BPD], dim=1
        ),
        own_cache_argument(): cache,
        # Without this, the model's generation config could replace the cache above.
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
    """The device that `module` computes on; accelerate's hook knows it if weights are offloaded."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device
