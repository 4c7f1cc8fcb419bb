"""Checkpoint files of latent-reasoning families: recognise the family and sort its tensors.

    family = recognise(tensors)             # None for other files, Coconut's own included
    parts = take_apart(path, tensors)       # parts.tensors have the model's own names

The layouts are those of zhenyi4/codi (4fd88d4), InternLM/SIM-CoT (f3ae967), xiaomi-research/colar
(4b6ae9a), the ports of ModalityDance/LatentTTS and bmarti44's Coconut checkpoints. Every tensor is
used, or left out with a log message; `state_dicts` checks the backbone's tensors.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_latentref.errors import LatentRefError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The layout of a family's files, and the settings that its models were trained with."""

    name: str
    kind: str
    """The value of `latent_kind`."""
    mark: str
    """A file belongs to the family if a key begins with this."""
    maps: Mapping[str, str] = field(default_factory=dict)
    """The map from hidden state to thought: key prefixes in the file, and the prefixes that its
    kind reads."""
    optional: tuple[str, ...] = ()
    """The key prefixes in `maps` of layers that some files lack."""
    latent_steps: int | None = None
    """The published number of thoughts; the maximum if rows stop early."""
    protocol: str | None = None
    """The name of the protocol in `latent.protocol`."""
    bare_markers: bool = False
    """Whether the three ids after the base's vocabulary are padding, start and end of the thoughts,
    without an entry in the tokenizer."""


_CODI: dict[str, Any] = {"kind": "projected", "latent_steps": 6, "protocol": "codi"}
_COLAR: dict[str, Any] = {"kind": "gaussian", "latent_steps": 64, "protocol": "colar"}


def _policy(name: str) -> dict[str, str]:
    layers = {"fc.0": "fc_1", "fc.2": "fc_2", "fc.3": "norm", "mean": "mean", "log_std": "log_std"}
    return {f"{name}.{theirs}.": f"{ours}." for theirs, ours in layers.items()}


FAMILIES = (
    Family(
        name="CODI",
        mark="prj.",
        maps={"prj.1.": "linear_1.", "prj.3.": "linear_2.", "prj.ln.": "norm."},
        optional=("prj.ln.",),
        bare_markers=True,
        **_CODI,
    ),
    Family(
        name="LatentTTS' CODI",
        mark="projector.",
        maps={"projector.1.": "linear_1.", "projector.3.": "linear_2.", "projector.4.": "norm."},
        optional=("projector.4.",),
        **_CODI,
    ),
    Family(name="CoLaR", mark="latent_policy.", maps=_policy("latent_policy"), **_COLAR),
    Family(
        name="LatentTTS' CoLaR",
        mark="lt_head.",
        maps=_policy("lt_head"),
        optional=("lt_head.log_std.",),
        **_COLAR,
    ),
    Family(name="pause", kind="pause", mark="pause_embedding", maps={"pause_embedding": "row"}),
    Family(name="SIM-CoT on Coconut", kind="continuous", mark="expainable_llm.", latent_steps=10),
)

LEFT_OUT = ("decoder.", "pj_in.", "pj_out.", "expainable_llm.")
"""Key prefixes of tensors that only training uses: the decoders that explain thoughts."""

WRAPPER_PREFIX = "base_causallm."
"""The prefix of all keys in Coconut's files."""

_PEFT = "base_model.model."
_WHOLE = tuple(wrapper + _PEFT for wrapper in ("codi.", "coconut."))
_WRAPPERS = (*_WHOLE, f"llm.{_PEFT}")
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.default\.weight")


@dataclass
class Parts:
    """The tensors of one file, sorted by purpose."""

    family: Family
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The backbone's weights."""
    map: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the map from hidden state to thought, under the names that its kind reads."""
    deltas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """LoRA's `A` [r, in] and `B` [out, r], by the name of the weight to which they are added."""


def recognise(keys: Iterable[str]) -> Family | None:
    """The family of a file with these keys; None if there is none."""
    names = list(keys)
    marked = (f for f in FAMILIES if any(name.startswith(f.mark) for name in names))
    return next(marked, None)


def is_wrapped(keys: Iterable[str]) -> bool:
    """Whether `keys` are those of a whole backbone inside a wrapper that training uses."""
    return any(key.startswith((WRAPPER_PREFIX, *_WHOLE)) for key in keys)


def is_map_key(key: str) -> bool:
    """Whether `key` belongs to some family's map from hidden state to thought."""
    return any(_map_name(family, key) is not None for family in FAMILIES)


def take_apart(path: str, tensors: Mapping[str, Tensor]) -> Parts | None:
    """The tensors of a family's file, sorted; None if the file belongs to no family.

    Raises LatentRefError if a LoRA adapter has only one of its two matrices, if a map lacks a
    tensor, if two keys are of the same tensor, or if a tensor of a map or an adapter has no
    floating-point numbers.
    """
    family = recognise(tensors)
    if family is None:
        return None
    parts = Parts(family)
    left_out = []
    for key, tensor in tensors.items():
        if key.startswith(LEFT_OUT):
            left_out.append(key)
        elif name := _map_name(family, key):
            _check_numbers(path, key, tensor)
            parts.map[name] = tensor
        else:
            _add(path, parts, _plain_name(key), tensor)
    _check_map(path, family, tensors)
    if left_out:
        starts = sorted({key.split(".")[0] + ".*" for key in left_out})
        logger.info(
            "%s: %s (%d tensors) are used in training only and left out",
            *(path, ", ".join(starts), len(left_out)),
        )
    for name, halves in parts.deltas.items():
        if halves.keys() != {"A", "B"}:
            raise LatentRefError(
                f"{path}: the adapter of {name!r} has only lora_{min(halves)}; save the "
                "checkpoint again"
            )
    return parts


def _map_name(family: Family, key: str) -> str | None:
    """The name of a tensor of the map that its kind reads; None if `key` is not of the map."""
    for start, name in family.maps.items():
        if key == start or (start.endswith(".") and key.startswith(start)):
            return name + key.removeprefix(start)
    return None


def _check_map(path: str, family: Family, keys: Iterable[str]) -> None:
    """Raise LatentRefError that names the keys of the family's map which the file lacks."""
    present = set(keys)
    layers = [
        start
        for start in family.maps
        if start.endswith(".")
        and not (start in family.optional and not any(key.startswith(start) for key in present))
    ]
    needed = {f"{layer}{part}" for layer in layers for part in ("weight", "bias")}
    if missing := sorted(needed - present):
        raise LatentRefError(
            f"{path}: a file of {family.name} needs the keys {', '.join(missing)}, which are "
            "missing; save the checkpoint again"
        )


def _check_numbers(path: str, key: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or 0 in (tensor.ndim, tensor.numel()):
        raise LatentRefError(
            f"{path}: {key!r} has shape {tuple(tensor.shape)} and {tensor.dtype}, but it must be a "
            "vector or matrix of floating-point numbers; save the checkpoint again"
        )


def _add(path: str, parts: Parts, name: str, tensor: Tensor) -> None:
    match = _LORA.fullmatch(name)
    if match is None:
        place, key = parts.tensors, name.replace(".base_layer.", ".")
    else:
        _check_numbers(path, name, tensor)
        place, key = parts.deltas.setdefault(f"{match['module']}.weight", {}), match["part"]
    if key in place:
        raise LatentRefError(
            f"{path} has {name!r} twice, with different prefixes; save the checkpoint again"
        )
    place[key] = tensor


def _plain_name(key: str) -> str:
    wrapper = next((wrapper for wrapper in _WRAPPERS if key.startswith(wrapper)), "")
    return key.removeprefix(wrapper)


def lora_alpha_of(value: str | float | None) -> float | None:
    """The argument `lora_alpha` as a number; None if it is not given."""
    if value is None:
        return None
    try:
        alpha = float(value)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise LatentRefError(f"lora_alpha={value}: it must be a number > 0")
    return alpha
