"""Which setting of a sweep to use: the best of each row, and the simplest that noise allows.

    choice = choose(outcomes, seed=0)
    choice.best["both"].setting.label, choice.recommended.setting.label

Judged by the mean log-likelihood margin of the gold answer (gold minus the best other candidate, or
gold alone where answers are free), which moves long before an accuracy does. Deliberately knows no
model and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.grid import ROWS, Setting
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    McNemar,
    detectable_difference,
    detectable_mean,
    joint_intervals,
    mcnemar,
    standard_error,
)

RULE = (
    "Within noise of the best setting (the largest mean margin of all) are those whose paired "
    "difference from it has a 95 % bootstrap interval, held jointly over all settings, that does "
    "not lie below 0. Recommended is the simplest of these and the best: none that needs "
    "references before one that does not, then the fewest thoughts, the fewest search steps, the "
    "smallest step, the smallest memory rate."
)


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
        if (members := [one for one in outcomes if one.setting.row == row])
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
        (one for one in outcomes if one.setting in near), key=lambda one: _complexity(one.setting)
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
        (one for one in outcomes if one is not best), key=lambda one: _complexity(one.setting)
    )
    if not others:
        return []
    differences_SN = np.array([one.margins for one in others]) - np.array(best.margins)
    return [
        Rival(
            setting=one.setting,
            margin=interval,
            accuracy_difference=one.accuracy - best.accuracy,
            test=mcnemar(best.correct, one.correct),
            within_noise=interval.high >= 0.0,
        )
        for one, interval in zip(others, joint_intervals(differences_SN, seed=seed), strict=True)
    ]


def _smallest(best: dict[str, Outcome]) -> tuple[float, float]:
    plain, others = best["plain"], [one for row, one in best.items() if row != "plain"]
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
