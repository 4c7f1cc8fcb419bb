"""Switches PEFT adapters quickly; the only module that relies on private names of PEFT.

    AdapterSwitch.of(peft_model).to("strong")      # None for the base weights alone
    keep_merged_rows(peft_model)                   # once no parameter is in training

PEFT's public switch walks all modules and parameters. For SmolLM2-135M that takes about a third of
the time of reading one token; setting the two fields of each layer directly takes a hundredth. The
fields are `_active_adapter` and `_disable_adapters` in peft/tuners/tuners_utils.py (BaseTunerLayer)
and peft/utils/other.py (AuxiliaryTrainingWrapper). If a check of these fields fails, PEFT's public
calls are used.

For every look-up of a token, and for the output layer, PEFT copies the whole embedding into a
matrix that has the rows an adapter trained; `keep_merged_rows` keeps the last such matrix. It
replaces `get_merged_weights` of TrainableTokensLayer in peft/tuners/trainable_tokens/layer.py.

Importing PEFT takes a tenth of a second or more, so it is imported where there is an adapter.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from peft import PeftModel

_SWITCHED = ("_active_adapter", "_disable_adapters")
"""The fields of a layer that a switch sets."""

_State = list[tuple[Any, bool]]
"""The values of these fields in each layer."""


@contextmanager
def making() -> Iterator[None]:
    """Hide a FutureWarning while PeftModels are made: PEFT 0.21 reads a name that transformers 5.24
    deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def is_adapted(model: Any) -> bool:
    """Whether `model` is a PeftModel, which it cannot be before PEFT is imported."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def adapter_layers(model: Any) -> list[Any]:
    """The layers of a PeftModel with adapters, with copies of modules, or with trained rows."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


def keep_merged_rows(model: PeftModel) -> None:
    """Let `model` merge trained token rows into its embedding once, not at every look-up.

    The embedding and a tied output layer share the matrix (V, D), which is kept until another is
    needed. Layers in training are merged anew each time.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    kept = _KeptRows()
    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            layer.get_merged_weights = partial(kept.of, layer)


class _KeptRows:
    """The last embedding into which rows were merged, and what it was merged from."""

    def __init__(self) -> None:
        self._sources: list[tuple[Tensor, int]] = []
        self._merged: Tensor | None = None

    def of(self, layer: Any, active_adapters: Sequence[str]) -> Tensor:
        """What `get_merged_weights` of the layer's class returns."""
        merge = partial(type(layer).get_merged_weights, layer, active_adapters)
        rows = [layer.trainable_tokens_delta[name] for name in active_adapters]
        tensors = [layer.base_layer.weight, *rows]
        if any(tensor.requires_grad for tensor in tensors):
            return merge()
        # The data are stored too, because an address is valid only while its tensor exists.
        sources = [(tensor.data, tensor._version) for tensor in tensors]
        if self._merged is None or list(map(_place, sources)) != list(map(_place, self._sources)):
            self._merged, self._sources = merge(), sources
        return self._merged


def _place(source: tuple[Tensor, int]) -> tuple[Any, ...]:
    data, version = source
    return data.data_ptr(), data.device, data.dtype, data.shape, version


class AdapterSwitch:
    """Switches a `PeftModel` between its adapters.

    The first switch to an adapter uses PEFT's public calls and records the fields that they set;
    later switches set these fields directly. If PEFT's calls change anything else in the layers,
    every switch uses PEFT's calls.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers = adapter_layers(model)
        self.is_quick = all(_is_understood(layer) for layer in self._layers)
        self._states: dict[str | None, _State] = {}
        self._active: str | None = None
        on = model.active_adapters
        if self.is_quick and len(on) == 1:
            states = self._read()
            if all(active in (on, on[0]) and not disabled for active, disabled in states):
                # No switch is needed to the active adapter. PEFT's switch would freeze its
                # parameters, which may be in training.
                self._active = on[0]
                self._states[on[0]] = states

    @classmethod
    def of(cls, model: PeftModel) -> AdapterSwitch:
        """The switch of `model`, of which there is only one."""
        if "_latentref_switch" not in model.__dict__:
            model.__dict__["_latentref_switch"] = cls(model)
        return model.__dict__["_latentref_switch"]

    def to(self, adapter: str | None) -> None:
        """Make `adapter` active; None: the base weights without an adapter."""
        if not self.is_quick or adapter not in self._states:
            self._set_by_peft(adapter)
        elif adapter != self._active:
            for layer, (active, disabled) in zip(self._layers, self._states[adapter], strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled
        self._active = adapter

    def _set_by_peft(self, adapter: str | None) -> None:
        before = [_others(layer) for layer in self._layers]
        if adapter is None:
            self._model.base_model.disable_adapter_layers()
        else:
            self._model.base_model.enable_adapter_layers()
            self._model.base_model.set_adapter(adapter, inference_mode=True)
        if self.is_quick and before == [_others(layer) for layer in self._layers]:
            self._states[adapter] = self._read()
        else:
            self.is_quick = False

    def _read(self) -> _State:
        return [(layer._active_adapter, layer._disable_adapters) for layer in self._layers]


def _is_understood(layer: Any) -> bool:
    """Whether the public properties of `layer` follow its private fields when these are set."""
    if not all(hasattr(layer, name) for name in _SWITCHED):
        return False
    before = layer._active_adapter, layer._disable_adapters
    try:
        for active, disabled in ((["adapter"], True), (["adapter"], False), before):
            layer._active_adapter, layer._disable_adapters = active, disabled
            if layer.active_adapter != active or layer.disable_adapters != disabled:
                return False
    finally:
        layer._active_adapter, layer._disable_adapters = before
    return True


def _others(layer: Any) -> dict[str, int]:
    """The ids of all attributes of a layer, except the fields that a switch sets."""
    return {name: id(value) for name, value in vars(layer).items() if name not in _SWITCHED}
