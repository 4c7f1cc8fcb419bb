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
from lm_eval_latentref.latent.kinds import KINDS
from lm_eval_latentref.latent.mapping import from_mapping, shown

SEARCH_GRADIENTS = ("detached", "through")
LATENT_MARKERS = ("auto", "none")
LATENT_KINDS = tuple(KINDS)
MAX_STEPS = 10_000
"""Of thoughts, and of updates per thought: more is a slip that would never end."""


def _one_of(choices: tuple[str, ...]) -> str:
    return " or ".join(repr(choice) for choice in choices)


_DOMAINS = {
    "latent_steps": f"an integer >= 0, at most {MAX_STEPS}",
    "memory_rate": "a number in [0, 1]",
    "search_step_size": "a finite number such as 20, or 0.3*d/2; 0 to switch the search off",
    "search_steps": f"an integer >= 1, at most {MAX_STEPS}",
    "search_gradient": _one_of(SEARCH_GRADIENTS),
    "latent_markers": _one_of(LATENT_MARKERS),
    "latent_kind": _one_of(LATENT_KINDS),
}


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
        self._check("latent_steps", 0 <= self.latent_steps <= MAX_STEPS)
        self._check("memory_rate", 0.0 <= self.memory_rate <= 1.0)
        self._check("search_step_size", math.isfinite(self.search_step_size))
        self._check("search_steps", 1 <= self.search_steps <= MAX_STEPS)
        self._check("search_gradient", self.search_gradient in SEARCH_GRADIENTS)
        self._check("latent_markers", self.latent_markers in LATENT_MARKERS)
        self._check("latent_kind", self.latent_kind in LATENT_KINDS)
        why = KINDS[self.latent_kind].why_not_refined
        if why and (self.memory_rate or self.search_step_size):
            raise LatentRefError(
                f"memory_rate={self.memory_rate:g}, search_step_size={self.search_step_size:g} "
                f"with latent_kind={self.latent_kind!r}: {why}; set both to 0, or give another kind"
            )

    def _check(self, name: str, allowed: bool) -> None:
        value = getattr(self, name)
        if not allowed:
            given = value if isinstance(value, str) else shown(value)
            raise LatentRefError(f"{name}={given}: it must be {_DOMAINS[name]}")

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
    def parse(cls, values: Mapping[str, Any], where: str = "") -> RefinementConfig:
        """The config with the options in `values`, which may be strings from a command line.

        `where` names the file they are from, if any. A value of None means "not given", except for
        `latent_markers`: lm-eval's command line turns `none` into None. Raises LatentRefError on an
        unknown option or a value outside its domain.
        """
        given = {
            name: _PREPARED.get(name, _as_given)(value)
            for name, value in values.items()
            if value is not None or name == "latent_markers"
        }
        return from_mapping(cls, given, where, domains=_DOMAINS)


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(RefinementConfig))


def _step_size(value: Any) -> Any:
    """A step size that has its unit as `HalfWidths`; anything else as it is."""
    number, _, unit = value.partition("*") if isinstance(value, str) else ("", "", "")
    if "".join(unit.split()) != "d/2":
        return value
    try:
        return HalfWidths(number) or 0.0
    except ValueError:
        return value


def _lower_case(value: Any) -> Any:
    return "none" if value is None else value.lower() if isinstance(value, str) else value


def _as_given(value: Any) -> Any:
    return value


_PREPARED = {
    "search_step_size": _step_size,
    "search_gradient": _lower_case,
    "latent_markers": _lower_case,
    "latent_kind": _lower_case,
}
"""What an option's value may be written as, beside its type."""
