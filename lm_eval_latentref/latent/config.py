"""The options of latent thinking and refinement: parsed and checked here, in a frozen dataclass.

    RefinementConfig.parse({"latent_steps": "6", "memory_rate": "0.3"})

`memory_rate` and the `search_*` options are those of Wang et al. (arXiv:2506.08552). Checks that
need a tokenizer or a reference model are in `selection` and `reasoner`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.kinds import KINDS
from lm_eval_latentref.latent.kinds.stops import ALLOWED as ALLOWED_STOPS
from lm_eval_latentref.latent.kinds.stops import check_stop
from lm_eval_latentref.latent.mapping import from_mapping, shown

SEARCH_GRADIENTS = ("detached", "through")
LATENT_MARKERS = ("auto", "none")
REALIGN = ("identity", "ridge")
LATENT_KINDS = tuple(KINDS)
MAX_STEPS = 10_000
"""The maximum of thoughts and of updates per thought; a larger number is surely a mistake."""


def _one_of(choices: tuple[str, ...]) -> str:
    return " or ".join(repr(choice) for choice in choices)


_DOMAINS = {
    "latent_steps": f"an integer >= 0, at most {MAX_STEPS}",
    "memory_rate": "a number in [0, 1]",
    "search_step_size": "a finite number such as 20, or 0.3*d/2; 0 to switch the search off",
    "search_steps": f"an integer >= 1, at most {MAX_STEPS}",
    "search_gradient": _one_of(SEARCH_GRADIENTS),
    "latent_markers": "'auto' or 'none', or two texts around the thoughts as <think>|</think>",
    "latent_kind": f"'auto' or {_one_of(LATENT_KINDS)}",
    "latent_stop": ALLOWED_STOPS,
    "stop_entropy": "a number > 0, in nats",
    "stop_patience": "an integer >= 1",
    "mixture_temperature": "a number > 0",
    "mixture_top_k": "an integer >= 1",
    "mixture_top_p": "a number in (0, 1]",
    "mixture_min_p": "a number in [0, 1)",
    "mixture_tokens": "an integer >= 1",
    "realign": _one_of(REALIGN),
    "thought_scale": "a number > 0",
    "thought_temperature": "a number >= 0",
    "thought_noise": "a number >= 0",
    "thought_dropout": "a number in [0, 1)",
    "confidence_steps": f"an integer >= 0, at most {MAX_STEPS}",
    "confidence_step_size": "a number > 0",
    "confidence_noise": "a number > 0",
    "thought_seed": "an integer >= 0",
}

_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "stop_entropy": lambda value: value > 0,
    "stop_patience": lambda value: value >= 1,
    "mixture_temperature": lambda value: value > 0,
    "mixture_top_k": lambda value: value >= 1,
    "mixture_top_p": lambda value: 0 < value <= 1,
    "mixture_min_p": lambda value: 0 <= value < 1,
    "mixture_tokens": lambda value: value >= 1,
    "realign": lambda value: value in REALIGN,
    "thought_scale": lambda value: value > 0,
    "confidence_steps": lambda value: 0 <= value <= MAX_STEPS,
    "confidence_step_size": lambda value: value > 0,
    "confidence_noise": lambda value: value > 0,
    "thought_temperature": lambda value: value >= 0,
}
"""Checks of the options that only some kinds read."""

_OF_KINDS = _ALLOWED.keys() | {"latent_stop"}


def without_other_kinds(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`values` without the options that `kind` does not read."""
    other = _OF_KINDS - KINDS[kind].defaults.keys()
    return {name: value for name, value in values.items() if name not in other}


class HalfWidths(float):
    """A step size in units of d/2, written `0.3*d/2`; d is the hidden size, not yet known.

    A step of 1*d/2 moves a thought by the whole vector from the weak reference's hidden state to
    the strong reference's hidden state.
    """

    def __str__(self) -> str:
        return f"{float(self):g}*d/2"

    __repr__ = __str__

    def __format__(self, how: str) -> str:
        return str(self)


@dataclass(frozen=True, kw_only=True)
class RefinementConfig:
    """The number of thoughts, their kind, and their refinement."""

    latent_steps: int = 0
    """T, the number of continuous thoughts; integer >= 0."""

    memory_rate: float = 0.0
    """alpha, the weight of the previous thought in the residual update; in [0, 1]."""

    search_step_size: float = 0.0
    """eta, the step size of the contrastive update; finite; 0: no search. One unit moves a thought
    by 2/d of the vector from the weak to the strong reference's hidden state (d: the hidden size).
    A value given as `0.3*d/2` is `HalfWidths` until `for_width` replaces it by a number."""

    search_steps: int = 1
    """S, the number of contrastive updates per thought; integer >= 1."""

    search_gradient: str = "detached"
    """`detached`: the gradient treats the references' hidden states as constants, so no autograd is
    needed; `through`: the gradient is taken through the references."""

    latent_markers: str = "auto"
    """`auto`: the checkpoint's marker tokens surround the thoughts, if it has any; `none`: no
    markers; `OPEN|CLOSE`: these two texts surround the thoughts. A text may be several tokens, and
    one of the two may be empty."""

    latent_kind: str = "continuous"
    """The kind of thought, a key of `kinds.KINDS`."""

    # Below, an option that is None takes the default of the kind. A value for an option that the
    # kind does not read is an error.

    latent_stop: str | None = None
    """When a row stops. `steps`: after T thoughts. `end_token`, `low_entropy`, `high_entropy`, or
    several of these joined by `+`: when the first of them applies, at the latest after T
    thoughts."""

    stop_entropy: float | None = None
    """The threshold of an entropy stop, in nats."""

    stop_patience: int | None = None
    """The number of consecutive steps for which the entropy must be beyond the threshold."""

    mixture_temperature: float | None = None
    """The softmax temperature of `mixture`; then its filters follow, in the order listed."""
    mixture_top_k: int | None = None
    mixture_top_p: float | None = None
    mixture_min_p: float | None = None
    mixture_tokens: int | None = None
    """The last filter: only this many of the likeliest tokens are mixed."""

    realign: str | None = None
    """The matrix of `realigned`: `identity` or `ridge`."""

    thought_scale: float | None = None
    """The factor by which `gaussian` thoughts are multiplied; the default depends on the base."""

    thought_temperature: float | None = None
    """The factor by which the noise of `gaussian` thoughts is multiplied; 0: the mean is fed."""

    thought_noise: float = 0.0
    """The standard deviation of normal noise added to each thought, of any kind."""

    thought_dropout: float = 0.0
    """The dropout probability of residual-branch components while a thought is read."""

    confidence_steps: int | None = None
    """The number of LTPO steps after the last thought; 0: none."""

    confidence_step_size: float | None = None
    """The step size of LTPO."""

    confidence_noise: float | None = None
    """The standard deviation of LTPO's first random displacement."""

    thought_seed: int = 0
    """The seed; every random number depends only on it, the document and the sample."""

    def __post_init__(self) -> None:
        self._check("latent_steps", 0 <= self.latent_steps <= MAX_STEPS)
        self._check("memory_rate", 0.0 <= self.memory_rate <= 1.0)
        self._check("search_step_size", math.isfinite(self.search_step_size))
        self._check("search_steps", 1 <= self.search_steps <= MAX_STEPS)
        self._check("search_gradient", self.search_gradient in SEARCH_GRADIENTS)
        self._check(
            "latent_markers",
            self.latent_markers in LATENT_MARKERS or self.marker_texts is not None,
        )
        self._check("latent_kind", self.latent_kind in LATENT_KINDS)
        self._check("thought_noise", 0 <= self.thought_noise < math.inf)
        self._check("thought_dropout", 0 <= self.thought_dropout < 1)
        self._check("thought_seed", self.thought_seed >= 0)
        self._check_kind()

    def _check_kind(self) -> None:
        kind = KINDS[self.latent_kind]
        for name in _OF_KINDS:
            value = getattr(self, name)
            if value is not None and name not in kind.defaults:
                raise LatentRefError(
                    f"{name}={value} with latent_kind={kind.name!r}, which does not read {name}; "
                    "leave it out, or give another latent_kind"
                )
            if value is not None and name in _ALLOWED:
                self._check(name, _ALLOWED[name](value))
        if "latent_stop" in kind.defaults:
            check_stop(self.of_kind["latent_stop"], self.stop_entropy, self.stop_patience)
        if kind.why_not_searched and self.search_step_size:
            raise LatentRefError(
                f"search_step_size={self.search_step_size:g} with latent_kind={kind.name!r}: "
                f"{kind.why_not_searched}; set it to 0, or give another latent_kind"
            )
        why = kind.why_not_refined
        if why and (self.memory_rate or self.search_step_size):
            raise LatentRefError(
                f"memory_rate={self.memory_rate:g}, search_step_size={self.search_step_size:g} "
                f"with latent_kind={self.latent_kind!r}: {why}; set both to 0, or give another "
                "latent_kind"
            )

    def _check(self, name: str, allowed: bool) -> None:
        value = getattr(self, name)
        if not allowed:
            given = value if isinstance(value, str) else shown(value)
            raise LatentRefError(f"{name}={given}: it must be {_DOMAINS[name]}")

    @property
    def draws(self) -> bool:
        """Whether thoughts depend on random numbers, so that two samples of a document differ."""
        is_mean = self.thought_temperature == 0 and self.latent_stop == "steps"
        are_drawn = KINDS[self.latent_kind].draws_vectors and not is_mean
        are_noisy = self.thought_noise > 0 or self.thought_dropout > 0
        return self.latent_steps > 0 and (are_drawn or are_noisy or self.seeks_confidence)

    @property
    def seeks_confidence(self) -> bool:
        """Whether LTPO moves the thoughts."""
        return self.latent_steps > 0 and bool(self.of_kind.get("confidence_steps"))

    @property
    def of_kind(self) -> dict[str, Any]:
        """The options in the kind's `defaults`, with the default for those that are not given."""
        return {
            name: default if getattr(self, name) is None else getattr(self, name)
            for name, default in KINDS[self.latent_kind].defaults.items()
        }

    @property
    def marker_texts(self) -> tuple[str, str] | None:
        """The texts before and after the thoughts if `latent_markers` is `OPEN|CLOSE`; else None.

        The texts may contain bars, as in `<|a|>|<|b|>`: the middle bar separates them.
        """
        parts = self.latent_markers.split("|")
        if self.latent_markers in LATENT_MARKERS or len(parts) % 2 or self.latent_markers == "|":
            return None
        half = len(parts) // 2
        return "|".join(parts[:half]), "|".join(parts[half:])

    @property
    def searches(self) -> bool:
        """Whether the contrastive search runs; it needs both references."""
        return self.latent_steps > 0 and self.search_step_size != 0.0

    def for_width(self, hidden_size: int) -> RefinementConfig:
        """This config with the step size as a number, for a model of this hidden size."""
        step_size = self.search_step_size
        if not isinstance(step_size, HalfWidths):
            return self
        return dataclasses.replace(self, search_step_size=float(step_size) * hidden_size / 2)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> RefinementConfig:
        """The config with the options in `values`, which may be strings from a command line.

        Args:
            values: options by name. None means "not given", except for `latent_markers`, because
                lm-eval's command line turns `none` into None.
            where: the file that holds the values, for messages.

        Raises:
            LatentRefError: an unknown option, or a value outside its domain.
        """
        values = {
            # latent_kind=auto means the same as no latent_kind.
            name: None if name == "latent_kind" and _lower_case(value) == "auto" else value
            for name, value in values.items()
        }
        given = {
            name: _NORMALIZERS[name](value) if name in _NORMALIZERS else value
            for name, value in values.items()
            if value is not None or name == "latent_markers"
        }
        return from_mapping(cls, given, where, domains=_DOMAINS)


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(RefinementConfig))


def _step_size(value: Any) -> Any:
    """`value` as `HalfWidths` if it has the unit d/2; otherwise `value` unchanged."""
    number, _, unit = value.partition("*") if isinstance(value, str) else ("", "", "")
    if "".join(unit.split()) != "d/2":
        return value
    try:
        return HalfWidths(number) or 0.0
    except ValueError:
        return value


def _marker_texts(value: Any) -> Any:
    return value if isinstance(value, str) and "|" in value else _lower_case(value)


def _lower_case(value: Any) -> Any:
    return "none" if value is None else value.lower() if isinstance(value, str) else value


_NORMALIZERS: dict[str, Callable[[Any], Any]] = {
    "search_step_size": _step_size,
    "search_gradient": _lower_case,
    "latent_markers": _marker_texts,
    "latent_kind": _lower_case,
    "latent_stop": _lower_case,
    "realign": _lower_case,
}
"""Functions that turn the accepted spellings of an option's value into the standard one."""
