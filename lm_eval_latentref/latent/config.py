"""The options of latent refinement: one frozen dataclass, parsed and checked in one place.

    RefinementConfig.parse({"latent_steps": "6", "memory_rate": "0.3"})

Names and domains are those of Wang et al. (arXiv:2506.08552). Checks that need a tokenizer or the
references are made where these are loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_latentref.errors import LatentRefError

SEARCH_GRADIENTS = ("detached", "through")
LATENT_MARKERS = ("auto", "none")
LATENT_KINDS = ("continuous", "pause")


class HalfWidths(float):
    """A step size in units of d/2, written `0.3*d/2`, for use before the hidden size d is known.

    A step of 1*d/2 moves a thought by the full vector from the weak reference's hidden state to the
    strong one's.
    """

    def __str__(self) -> str:
        return f"{float(self):g}*d/2"

    __repr__ = __str__

    def __format__(self, how: str) -> str:
        return str(self)


@dataclass(frozen=True, kw_only=True)
class RefinementConfig:
    """How many thoughts a model thinks and how each of them is refined."""

    latent_steps: int = 0
    """T, the number of continuous thoughts; integer >= 0."""

    memory_rate: float = 0.0
    """alpha, the weight of the previous thought in the residual update; in [0, 1]."""

    search_step_size: float = 0.0
    """eta, the step length of the contrastive update; finite, 0 = off. One unit moves a thought by
    2/d of the vector from the weak reference's hidden state to the strong one's (d: the hidden
    size). A value given as `0.3*d/2` is `HalfWidths` until `for_width` replaces it."""

    search_steps: int = 1
    """S, contrastive updates per thought; integer >= 1."""

    search_gradient: str = "detached"
    """`detached`: the references' outputs are constants in the gradient, which needs no autograd;
    `through`: they are functions of the thought."""

    latent_markers: str = "auto"
    """`auto`: marker tokens surround the thoughts when the tokenizer has them; `none`: never."""

    latent_kind: str = "continuous"
    """`continuous`: each thought is the hidden state of the column before it; `pause`: each is the
    embedding of the `<|latent|>` token and all are read in one pass, for control checkpoints that
    were trained with pause tokens."""

    def __post_init__(self) -> None:
        _check(self.latent_steps >= 0, "latent_steps", self.latent_steps, "an integer >= 0")
        _check(
            0.0 <= self.memory_rate <= 1.0, "memory_rate", self.memory_rate, "a number in [0, 1]"
        )
        _check(
            math.isfinite(self.search_step_size),
            "search_step_size",
            self.search_step_size,
            "a finite number, 0 to switch the search off",
        )
        _check(self.search_steps >= 1, "search_steps", self.search_steps, "an integer >= 1")
        _check_choice("search_gradient", self.search_gradient, SEARCH_GRADIENTS)
        _check_choice("latent_markers", self.latent_markers, LATENT_MARKERS)
        _check_choice("latent_kind", self.latent_kind, LATENT_KINDS)
        if self.latent_kind == "pause" and (self.memory_rate or self.search_step_size):
            raise LatentRefError(
                f"memory_rate={self.memory_rate:g}, search_step_size={self.search_step_size:g} "
                "with latent_kind='pause': pause tokens are not thoughts and cannot be refined; "
                "set both to 0, or latent_kind=continuous"
            )

    @property
    def searches(self) -> bool:
        """Whether the contrastive search runs, which needs both references."""
        return self.latent_steps > 0 and self.search_step_size != 0.0

    def for_width(self, hidden_size: int) -> RefinementConfig:
        """This config with its step size as a number, for a model of this hidden size."""
        step_size = self.search_step_size
        if not isinstance(step_size, HalfWidths):
            return self
        return dataclasses.replace(self, search_step_size=float(step_size) * hidden_size / 2)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RefinementConfig:
        """The config with the options in `values`, which may be strings from a command line.

        A value of None means "not given", except for `latent_markers`: lm-eval's command line
        turns `none` into None. Raises LatentRefError on an unknown option or a value outside its
        domain.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise LatentRefError(
                    f"{name!r} is not a refinement option; the options are "
                    f"{', '.join(sorted(names))}"
                )
        given = {
            name: value
            for name, value in values.items()
            if value is not None or name == "latent_markers"
        }
        parsed: dict[str, Any] = {name: _PARSERS[name](name, given[name]) for name in given}
        return cls(**parsed)


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(RefinementConfig))


def _check(allowed: bool, name: str, value: object, domain: str) -> None:
    if not allowed:
        raise LatentRefError(f"{name}={value}: it must be {domain}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    _check(value in choices, name, value, " or ".join(repr(choice) for choice in choices))


def _parse_integer(name: str, value: Any) -> int:
    domain = "an integer >= 1" if name == "search_steps" else "an integer >= 0"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = math.isfinite(number) and number == int(number) and not isinstance(value, bool)
    _check(whole, name, value, domain)
    return int(number)


def _parse_number(name: str, value: Any) -> float:
    domain = "a number in [0, 1]" if name == "memory_rate" else "a finite number"
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise LatentRefError(f"{name}={value}: it must be {domain}") from None


def _parse_step_size(name: str, value: Any) -> float:
    if isinstance(value, HalfWidths):
        return value
    number, star, unit = str(value).partition("*")
    if star and "".join(unit.split()) != "d/2":
        raise LatentRefError(f"{name}={value}: give a number such as 20, or 0.3*d/2")
    parsed = _parse_number(name, number if star else value)
    return HalfWidths(parsed) if star and parsed else parsed


def _parse_choice(name: str, value: Any) -> str:
    return str(value).lower()


_PARSERS = {
    "latent_steps": _parse_integer,
    "memory_rate": _parse_number,
    "search_step_size": _parse_step_size,
    "search_steps": _parse_integer,
    "search_gradient": _parse_choice,
    "latent_markers": _parse_choice,
    "latent_kind": _parse_choice,
}
