"""Which epochs of CoT training become the references: the strong one and the weak one.

    weak, strong = choose([Epoch(1, 40, 500), Epoch(2, 350, 500)], chance=0.05)

Deliberately knows no models and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest


class Epoch(NamedTuple):
    """What validation found after an epoch (counted from 1)."""

    number: int
    num_correct: int
    num_problems: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_problems


def lower_bound(num_correct: int, num_problems: int) -> float:
    """The lower end of Wilson's 95 % interval of a proportion."""
    test = binomtest(num_correct, num_problems)
    return float(test.proportion_ci(confidence_level=0.95, method="wilson").low)


def choose(
    epochs: Sequence[Epoch],
    *,
    chance: float,
    strong_epoch: int | None = None,
    weak_epoch: int | None = None,
) -> tuple[int | None, int | None]:
    """The numbers of the weak and the strong epoch among those so far; None where there is none.

    Strong is the best, the later of two equals; weak the worst other one that clearly beats chance,
    the earlier of two equals; unless the epoch is named. An epoch that is not chosen now will not
    be chosen when there are more, so its weights need not be kept.
    """
    numbers = [epoch.number for epoch in epochs]
    best = max(epochs, key=lambda epoch: (epoch.accuracy, epoch.number), default=None)
    strong = best.number if best else None
    if strong_epoch is not None:
        strong = strong_epoch if strong_epoch in numbers else None
    beating = [
        epoch
        for epoch in epochs
        if epoch.number != strong and lower_bound(epoch.num_correct, epoch.num_problems) > chance
    ]
    worst = min(beating, key=lambda epoch: (epoch.accuracy, epoch.number), default=None)
    weak = worst.number if worst else None
    if weak_epoch is not None:
        weak = weak_epoch if weak_epoch in numbers else None
    return weak, strong
