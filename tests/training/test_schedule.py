"""The choice of the CoT epochs that become weak and strong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.training.schedule import Epoch, choose, lower_bound


def test_strong_is_the_best_epoch_and_weak_the_worst_that_beats_chance():
    epochs = [Epoch(1, 30, 500), Epoch(2, 90, 500), Epoch(3, 300, 500), Epoch(4, 450, 500)]
    assert choose(epochs, chance=0.05) == (2, 4)
    assert choose(epochs, chance=0.5) == (3, 4)
    assert choose(epochs, chance=0.9) == (None, 4)
    assert choose(epochs, chance=0.05, weak_epoch=1, strong_epoch=3) == (1, 3)
    assert choose(epochs[:2], chance=0.05, strong_epoch=3) == (2, None)


@given(
    correct=st.lists(st.integers(0, 100), min_size=2, max_size=8),
    chance=st.floats(0, 1),
)
def test_an_epoch_that_is_not_chosen_is_never_chosen_later(correct, chance):
    epochs = [Epoch(number, right, 100) for number, right in enumerate(correct, start=1)]
    kept: set[int | None] = set()
    for num_epochs in range(1, len(epochs) + 1):
        chosen = set(choose(epochs[:num_epochs], chance=chance))
        assert chosen <= kept | {num_epochs, None}
        kept = chosen


def test_the_lower_bound_is_wilsons():
    # Wilson (1927); values from the usual tables.
    assert lower_bound(50, 100) == pytest.approx(0.4038, abs=1e-4)
    assert lower_bound(0, 100) == pytest.approx(0.0, abs=1e-12)
    assert lower_bound(random.Random(0).randint(1, 99), 100) > 0
