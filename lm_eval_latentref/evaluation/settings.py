"""The settings that a sweep tries, and the choice among them.

    grid = Grid(memory_rates=(0.3, 0.5), step_sizes=(0.1,), latent_steps=(6,))
    grid.settings()[0].label            # "T=6 alpha=0 eta=0"
    choice = choose(outcomes, seed=0)
    choice.best["both"].setting.label, choice.recommended.setting.label

The grid has the paper's four rows: plain, residual only, search only, both. Step sizes are in units
of d/2: 1 moves a thought by the full vector from the weak reference's hidden state to the strong
one's, whatever the model's hidden size d. Settings are compared by the mean log-likelihood margin
of the gold answer (gold minus the best other candidate, or gold alone if answers are free text),
which shows changes that are too small for an accuracy to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    McNemar,
    detectable_difference,
    detectable_mean,
    joint_intervals,
    mcnemar,
    standard_error,
)
from lm_eval_latentref.latent.config import HalfWidths, RefinementConfig

ROWS = ("plain", "residual", "search", "both")
"""From the simplest to the most complex: the search needs two more models than the residual."""


RULE = (
    "Within noise of the best setting (the largest mean margin of all) are those whose paired "
    "difference from it has a 95 % bootstrap interval, held jointly over all settings, that does "
    "not lie below 0. Recommended is the simplest of these and the best: none that needs "
    "references before one that does not, then the fewest thoughts, the fewest search steps, the "
    "smallest step, the smallest memory rate."
)


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """One point of the grid; values without effect are 0 or 1, so that equal settings match."""

    latent_steps: int
    memory_rate: float = 0.0
    step_size: float = 0.0
    """In units of d/2."""
    search_steps: int = 1

    @classmethod
    def of(cls, steps: int, memory_rate: float, step_size: float, search_steps: int) -> Setting:
        """The setting with these values, without those that change nothing."""
        return cls(
            latent_steps=steps,
            # The first thought has no predecessor.
            memory_rate=memory_rate if steps > 1 else 0.0,
            step_size=step_size if steps else 0.0,
            search_steps=search_steps if steps and step_size else 1,
        )

    @property
    def row(self) -> str:
        """Which of `ROWS` it belongs to."""
        return ROWS[(self.memory_rate != 0) + 2 * (self.step_size != 0)]

    @property
    def eta(self) -> str:
        """The step size, `0.3*d/2`."""
        return str(HalfWidths(self.step_size)) if self.step_size else "0"

    @property
    def label(self) -> str:
        label = f"T={self.latent_steps} alpha={self.memory_rate:g} eta={self.eta}"
        return label if self.search_steps == 1 else f"{label} S={self.search_steps}"

    @property
    def model_args(self) -> str:
        """The `--model_args` that ask for it, whatever latentref.json recommends."""
        return ",".join(
            [
                f"latent_steps={self.latent_steps}",
                f"memory_rate={self.memory_rate:g}",
                f"search_step_size={self.eta}",
                f"search_steps={self.search_steps}",
            ]
        )

    def config(self, hidden_size: int, **options: Any) -> RefinementConfig:
        """The options that run it on a model; `options` are the others of `RefinementConfig`."""
        return RefinementConfig(
            latent_steps=self.latent_steps,
            memory_rate=self.memory_rate,
            search_step_size=self.step_size * hidden_size / 2,
            search_steps=self.search_steps,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values to try of each option; every combination is a setting."""

    latent_steps: tuple[int, ...]
    memory_rates: tuple[float, ...] = (0.0,)
    step_sizes: tuple[float, ...] = (0.0,)
    """In units of d/2; negative ones move towards the weak reference."""
    search_steps: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("latent_steps", "memory_rates", "step_sizes", "search_steps"):
            if not getattr(self, name):
                raise LatentRefError(f"{name} is empty: give at least one value")
        for steps, rate, size, num_searches in self._points():
            RefinementConfig(
                latent_steps=steps,
                memory_rate=rate,
                search_step_size=size,
                search_steps=num_searches,
            )

    def settings(self) -> list[Setting]:
        """All settings, each once, sorted; 0 always joins memory rates and step sizes.

        Without 0 there would be nothing to compare with.
        """
        return sorted({Setting.of(*point) for point in self._points()})

    def _points(self) -> Iterator[tuple[int, float, float, int]]:
        rates, sizes = {0.0, *self.memory_rates}, {0.0, *self.step_sizes}
        return product(self.latent_steps, rates, sizes, self.search_steps)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one setting did on every document, in an order that all settings share."""

    setting: Setting
    correct: tuple[bool, ...]
    margins: tuple[float, ...]
    """Log-likelihood of the gold answer minus that of the best other, in nats; of a free answer,
    which has no other, its log-likelihood alone."""

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.correct))

    @property
    def accuracy_error(self) -> float:
        return standard_error(self.correct)

    @property
    def margin(self) -> float:
        return float(np.mean(self.margins))

    @property
    def margin_error(self) -> float:
        return standard_error(self.margins)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A setting against the best of all on the same documents."""

    setting: Setting
    margin: Interval
    """Of the difference, this one minus the best, joint over all settings."""
    accuracy_difference: float
    test: McNemar
    within_noise: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The verdict on a sweep."""

    best: dict[str, Outcome]
    """Per row of `ROWS` that the sweep has, its setting of the largest mean margin."""
    best_of_all: Outcome
    recommended: Outcome
    rivals: tuple[Rival, ...]
    """Every setting but the best of all, from simple to complex."""
    smallest_accuracy: float
    """The smallest accuracy difference from the best plain setting that this many documents would
    show with a power of 80 %, at the share on which it and the best other setting disagree."""
    smallest_margin: float
    """Likewise the smallest difference of mean margins; nan when there is nothing but plain."""


def choose(outcomes: Sequence[Outcome], *, seed: int) -> Choice:
    """The verdict by `RULE`. Raises LatentRefError when no plain setting came out finite."""
    best = {
        row: max(members, key=_preference)
        for row in ROWS
        if (members := [outcome for outcome in outcomes if outcome.setting.row == row])
    }
    if "plain" not in best:
        raise LatentRefError(
            "no setting without refinement came out finite, so there is nothing to compare with; "
            "check the checkpoint, or use dtype=float32"
        )
    best_of_all = max(best.values(), key=_preference)
    rivals = _rivals(best_of_all, outcomes, seed)
    near = {rival.setting for rival in rivals if rival.within_noise} | {best_of_all.setting}
    recommended = min(
        (outcome for outcome in outcomes if outcome.setting in near),
        key=lambda outcome: _complexity(outcome.setting),
    )
    smallest_accuracy, smallest_margin = _smallest(best)
    return Choice(
        best=best,
        best_of_all=best_of_all,
        recommended=recommended,
        rivals=tuple(rivals),
        smallest_accuracy=smallest_accuracy,
        smallest_margin=smallest_margin,
    )


def _complexity(setting: Setting) -> tuple[bool, int, int, float, bool, float]:
    """Smaller is simpler: what costs most comes first."""
    size = abs(setting.step_size)
    # Of a step and its opposite, the one towards the strong reference.
    step = (setting.search_steps, size, setting.step_size < 0)
    return size > 0, setting.latent_steps, *step, setting.memory_rate


def _preference(outcome: Outcome) -> tuple[float, ...]:
    """Largest mean margin; of equal ones the simplest."""
    return outcome.margin, *(-value for value in _complexity(outcome.setting))


def _rivals(best: Outcome, outcomes: Sequence[Outcome], seed: int) -> list[Rival]:
    others = sorted(
        (outcome for outcome in outcomes if outcome is not best),
        key=lambda outcome: _complexity(outcome.setting),
    )
    if not others:
        return []
    differences_SN = np.array([outcome.margins for outcome in others]) - np.array(best.margins)
    return [
        Rival(
            setting=outcome.setting,
            margin=interval,
            accuracy_difference=outcome.accuracy - best.accuracy,
            test=mcnemar(best.correct, outcome.correct),
            within_noise=interval.high >= 0.0,
        )
        for outcome, interval in zip(
            others, joint_intervals(differences_SN, seed=seed), strict=True
        )
    ]


def _smallest(best: dict[str, Outcome]) -> tuple[float, float]:
    plain, others = best["plain"], [outcome for row, outcome in best.items() if row != "plain"]
    num_documents = len(plain.correct)
    if not others:
        return detectable_difference(num_documents, discordant_share=0.0), float("nan")
    rival = max(others, key=_preference)
    share = float(np.mean(np.array(plain.correct) != np.array(rival.correct)))
    differences_N = np.array(rival.margins) - np.array(plain.margins)
    return (
        detectable_difference(num_documents, discordant_share=share),
        detectable_mean(differences_N),
    )
