"""The settings that a sweep tries, and the choice among them.

    grid = Grid(memory_rates=(0.3, 0.5), step_sizes=(0.1,), latent_steps=(6,))
    grid.settings()[0].label            # "T=6 alpha=0 eta=0"
    choice = choose(outcomes, seed=0)
    choice.best["both"].setting.label, choice.recommended.setting.label

The grid has the paper's four rows: plain, residual only, search only, both. Step sizes are in units
of d/2, where d is the hidden size: 1 moves a thought by the full difference between the hidden
states of the strong and the weak reference. Settings are compared by the mean log-likelihood margin
of the gold answer (gold minus the best other candidate, or gold alone if answers are free text),
which shows smaller changes than an accuracy does.
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
"""The rows, from the simplest to the most complex: the search needs two further models."""

RECOMMENDED = "recommended"
"""The row of the setting that `RULE` recommends."""

RULE = (
    "The best setting has the largest mean margin. A setting is within noise of the best if the "
    "95 % bootstrap interval of their paired difference, joint over all settings, does not lie "
    "below 0. The simplest of the best setting and those within noise is recommended: settings "
    "without references come first, then those with the fewest thoughts, the fewest search steps, "
    "the smallest step and the smallest memory rate."
)


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """One point of the grid. Values without effect are 0 or 1, so that equal settings match."""

    latent_steps: int
    memory_rate: float = 0.0
    step_size: float = 0.0
    """In units of d/2."""
    search_steps: int = 1

    @classmethod
    def of(cls, steps: int, memory_rate: float, step_size: float, search_steps: int) -> Setting:
        """The setting with these values; values without effect are replaced by 0 or 1."""
        return cls(
            latent_steps=steps,
            # The first thought has no predecessor.
            memory_rate=memory_rate if steps > 1 else 0.0,
            step_size=step_size if steps else 0.0,
            search_steps=search_steps if steps and step_size else 1,
        )

    @property
    def row(self) -> str:
        """The row of the setting, one of `ROWS`."""
        return ROWS[(self.memory_rate != 0) + 2 * (self.step_size != 0)]

    @property
    def eta(self) -> str:
        """The step size as in `--model_args`, such as `0.3*d/2`."""
        return str(HalfWidths(self.step_size)) if self.step_size else "0"

    @property
    def label(self) -> str:
        label = f"T={self.latent_steps} alpha={self.memory_rate:g} eta={self.eta}"
        return label if self.search_steps == 1 else f"{label} S={self.search_steps}"

    @property
    def model_args(self) -> str:
        """The `--model_args` of the setting, which override latentref.json."""
        return ",".join(
            [
                f"latent_steps={self.latent_steps}",
                f"memory_rate={self.memory_rate:g}",
                f"search_step_size={self.eta}",
                f"search_steps={self.search_steps}",
            ]
        )

    def config(self, hidden_size: int, **options: Any) -> RefinementConfig:
        """The setting's options for a model; `options` are further fields of `RefinementConfig`."""
        return RefinementConfig(
            latent_steps=self.latent_steps,
            memory_rate=self.memory_rate,
            search_step_size=self.step_size * hidden_size / 2,
            search_steps=self.search_steps,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """For each option, the values to try; every combination is a setting."""

    latent_steps: tuple[int, ...]
    memory_rates: tuple[float, ...] = (0.0,)
    step_sizes: tuple[float, ...] = (0.0,)
    """In units of d/2; negative steps move towards the weak reference."""
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
        """All distinct settings, sorted.

        Memory rates and step sizes always include 0, with which the others are compared.
        """
        return sorted({Setting.of(*point) for point in self._points()})

    def _points(self) -> Iterator[tuple[int, float, float, int]]:
        rates, sizes = {0.0, *self.memory_rates}, {0.0, *self.step_sizes}
        return product(self.latent_steps, rates, sizes, self.search_steps)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of one setting on every document; all settings have the same order."""

    setting: Setting
    correct: tuple[bool, ...]
    margins: tuple[float, ...]
    """Log-likelihood of the gold answer minus that of the best other candidate, in nats; for free
    answers, which have no other candidates, the log-likelihood alone."""

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
    """A setting compared with the best setting on the same documents."""

    setting: Setting
    margin: Interval
    """Mean margin minus that of the best setting; the interval is joint over all settings."""
    accuracy_difference: float
    test: McNemar
    within_noise: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The result of a sweep."""

    best: dict[str, Outcome]
    """For each row of the sweep, the setting with the largest mean margin."""
    best_of_all: Outcome
    recommended: Outcome
    rivals: tuple[Rival, ...]
    """All settings but the best, from simple to complex."""
    smallest_accuracy: float
    """The smallest difference of accuracy from the best plain setting that this many documents can
    show with a power of 80 %, given the share of documents on which it and the best other setting
    disagree."""
    smallest_margin: float
    """The smallest difference of mean margins that they can show; nan if all settings are plain."""

    @property
    def settings(self) -> dict[str, Setting]:
        """The best setting of each row, and the recommended setting as the row `RECOMMENDED`."""
        best = {row: outcome.setting for row, outcome in self.best.items()}
        return {**best, RECOMMENDED: self.recommended.setting}


def choose(outcomes: Sequence[Outcome], *, seed: int) -> Choice:
    """The choice by `RULE`. Raises LatentRefError if `outcomes` have no plain setting."""
    best = {
        row: max(members, key=_preference)
        for row in ROWS
        if (members := [outcome for outcome in outcomes if outcome.setting.row == row])
    }
    if "plain" not in best:
        raise LatentRefError(
            "all settings without refinement overflowed, so there is nothing to compare with; "
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
    """A sort key from simple to complex; the most expensive option comes first."""
    size = abs(setting.step_size)
    # Of two opposite steps, the step towards the strong reference is simpler.
    step = (setting.search_steps, size, setting.step_size < 0)
    return size > 0, setting.latent_steps, *step, setting.memory_rate


def _preference(outcome: Outcome) -> tuple[float, ...]:
    """A sort key for the best setting: the largest mean margin, then the simplest setting."""
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
