"""What the package rests on in transformers beyond its public calls, in one place.

    inputs = {cache_argument(decoder.forward): cache, "use_cache": True}

`tests/latent/test_transformers_contract.py` holds each of these against the installed version.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import GenerationMixin

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
