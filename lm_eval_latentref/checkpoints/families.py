"""Files of latent-reasoning families: which family a file is of, and what each of its keys is.

    family = recognise(tensors)             # None: of none, or Coconut's own
    parts = take_apart(path, tensors)       # parts.tensors have the model's own names

Layouts are those of zhenyi4/codi (4fd88d4), InternLM/SIM-CoT (f3ae967), xiaomi-research/colar
(4b6ae9a), the ports of ModalityDance/LatentTTS and bmarti44's Coconut checkpoints. Every key is
used, or left out for a reason that is logged; what remains is checked by `state_dicts`.
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
    """What a family's files say of the thoughts of their models."""

    name: str
    kind: str
    """As `latent_kind`."""
    mark: str
    """The beginning of the keys by which a file is recognised."""
    maps: Mapping[str, str] = field(default_factory=dict)
    """The map from hidden state to thought: beginnings of keys, and the layers they are."""
    latent_steps: int | None = None
    """Published number of thoughts, or the cap where rows end earlier."""
    protocol: str | None = None
    bare_markers: bool = False
    """Whether the ids after the base's vocabulary are pad, start and end of thoughts, which no
    tokenizer names."""


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
        bare_markers=True,
        **_CODI,
    ),
    Family(
        name="LatentTTS' CODI",
        mark="projector.",
        maps={"projector.1.": "linear_1.", "projector.3.": "linear_2.", "projector.4.": "norm."},
        **_CODI,
    ),
    Family(name="CoLaR", mark="latent_policy.", maps=_policy("latent_policy"), **_COLAR),
    Family(name="LatentTTS' CoLaR", mark="lt_head.", maps=_policy("lt_head"), **_COLAR),
    Family(name="pause", kind="pause", mark="pause_embedding", maps={"pause_embedding": "row"}),
    Family(name="SIM-CoT on Coconut", kind="continuous", mark="expainable_llm.", latent_steps=10),
)

LEFT_OUT = ("decoder.", "pj_in.", "pj_out.", "expainable_llm.")
"""Beginnings of keys that only training uses: the decoders that explain thoughts."""

WRAPPER_PREFIX = "base_causallm."
"""Of the keys in Coconut's files."""

_PEFT = "base_model.model."
_WHOLE = tuple(wrapper + _PEFT for wrapper in ("codi.", "coconut."))
_WRAPPERS = (*_WHOLE, f"llm.{_PEFT}")
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.default\.weight")


@dataclass
class Parts:
    """The tensors of one file, by what they are."""

    family: Family
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Of the backbone."""
    map: dict[str, Tensor] = field(default_factory=dict)
    """Of the map from hidden state to thought, by the names that `latent.kinds` reads."""
    deltas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """LoRA's `A` [r, in] and `B` [out, r] by the name of the weight that they are added to."""


def recognise(keys: Iterable[str]) -> Family | None:
    """The family whose keys are among `keys`."""
    names = list(keys)
    marked = (f for f in FAMILIES if any(name.startswith(f.mark) for name in names))
    return next(marked, None)


def is_wrapped(keys: Iterable[str]) -> bool:
    """Whether a whole backbone is among `keys`, by the names that a wrapper of training gives."""
    return any(key.startswith((WRAPPER_PREFIX, *_WHOLE)) for key in keys)


def is_of_a_map(key: str) -> bool:
    """Whether `key` belongs to a family's map and not to a backbone."""
    return any(key.startswith(start) for family in FAMILIES for start in family.maps)


def take_apart(path: str, tensors: Mapping[str, Tensor]) -> Parts | None:
    """The tensors of a family's file; None for a file of no family.

    Raises LatentRefError for half an adapter.
    """
    family = recognise(tensors)
    if family is None:
        return None
    parts = Parts(family)
    left_out = []
    for key, tensor in tensors.items():
        if key.startswith(LEFT_OUT):
            left_out.append(key)
        elif start := next((start for start in family.maps if key.startswith(start)), None):
            parts.map[family.maps[start] + key.removeprefix(start)] = tensor
        else:
            _add(parts, _plain_name(key), tensor)
    if left_out:
        starts = sorted({key.split(".")[0] + ".*" for key in left_out})
        logger.info(
            "%s: %s (%d tensors) are of training only and left out",
            *(path, ", ".join(starts), len(left_out)),
        )
    for name, halves in parts.deltas.items():
        if halves.keys() != {"A", "B"}:
            raise LatentRefError(
                f"{path}: the adapter of {name!r} has lora_{min(halves)} alone; save the "
                "checkpoint again"
            )
    return parts


def _add(parts: Parts, name: str, tensor: Tensor) -> None:
    match = _LORA.fullmatch(name)
    if match is None:
        parts.tensors[name.replace(".base_layer.", ".")] = tensor
    else:
        parts.deltas.setdefault(f"{match['module']}.weight", {})[match["part"]] = tensor


def _plain_name(key: str) -> str:
    wrapper = next((wrapper for wrapper in _WRAPPERS if key.startswith(wrapper)), "")
    return key.removeprefix(wrapper)


def lora_alpha_of(given: str | None) -> float | None:
    """The number in the argument `lora_alpha`; None if it is not given."""
    if given is None:
        return None
    try:
        alpha = float(given)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise LatentRefError(f"lora_alpha={given}: it must be a number > 0")
    return alpha
