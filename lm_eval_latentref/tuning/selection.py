"""Which setting of a sweep to use: the best of each row, and the simplest that noise allows.

    choice = choose(outcomes, seed=0)
    choice.best["both"].setting.label, choice.recommended.setting.label

Judged by the mean log-likelihood margin of the gold answer (gold minus the best other candidate),
which moves long before an accuracy does. Deliberately knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.tuning.grid import ROWS, Setting
from lm_eval_latentref.tuning.statistics import (
    Interval,
    McNemar,
    detectable_difference,
    detectable_mean,
    joint_intervals,
    mcnemar,
    standard_error,
)

RULE = (
    "Rows from simple to complex: plain, residual only, search only, both. The best plain setting "
    "is recommended unless a row's best setting beats it: the 95 % paired bootstrap interval of "
    "the mean margin's difference, held jointly over all settings that are more complex, lies "
    "above 0. A row that wins has to be beaten in the same way by the next."
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one setting did on every document, in an order that all settings share."""

    setting: Setting
    correct: tuple[bool, ...]
    margins: tuple[float, ...]
    """Log-likelihood of the gold answer minus that of the best other, in nats."""

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
class Duel:
    """A more complex setting against a simpler one on the same documents."""

    challenger: Setting
    incumbent: Setting
    margin: Interval
    """Of the difference, challenger minus incumbent, joint over all settings compared."""
    accuracy_difference: float
    test: McNemar
    wins: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The verdict on a sweep."""

    best: dict[str, Outcome]
    """Per row of `ROWS` that the sweep has, its setting of the largest mean margin."""
    recommended: Outcome
    duels: tuple[Duel, ...]
    """In the order they were fought; the recommended setting is the last winner."""
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
    incumbent, duels = best["plain"], []
    for row in ROWS[1:]:
        if row in best:
            duel = _duel(best[row], incumbent, outcomes, seed)
            duels.append(duel)
            incumbent = best[row] if duel.wins else incumbent
    smallest_accuracy, smallest_margin = _smallest(best)
    return Choice(
        best=best,
        recommended=incumbent,
        duels=tuple(duels),
        smallest_accuracy=smallest_accuracy,
        smallest_margin=smallest_margin,
    )


def _preference(outcome: Outcome) -> tuple[float, int, int, float, float]:
    """Largest mean margin; of equal ones the cheapest and the gentlest."""
    setting = outcome.setting
    gentle = (-setting.latent_steps, -setting.search_steps)
    return outcome.margin, *gentle, -abs(setting.step_size), -setting.memory_rate


def _duel(challenger: Outcome, incumbent: Outcome, outcomes: Sequence[Outcome], seed: int) -> Duel:
    rank = ROWS.index(incumbent.setting.row)
    family = [one for one in outcomes if ROWS.index(one.setting.row) > rank]
    differences_SN = np.array([one.margins for one in family]) - np.array(incumbent.margins)
    interval = joint_intervals(differences_SN, seed=seed)[family.index(challenger)]
    return Duel(
        challenger=challenger.setting,
        incumbent=incumbent.setting,
        margin=interval,
        accuracy_difference=challenger.accuracy - incumbent.accuracy,
        test=mcnemar(incumbent.correct, challenger.correct),
        wins=interval.low > 0.0,
    )


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
