"""A sweep recommends the simplest setting within noise of the best."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.settings import Grid, Outcome, Setting, choose

PLAIN, RESIDUAL = Setting(latent_steps=6), Setting(latent_steps=6, memory_rate=0.3)
SEARCH = Setting(latent_steps=6, step_size=0.5)
BOTH = Setting(latent_steps=6, memory_rate=0.3, step_size=0.5)


def outcome(setting, gain, seed, noise=0.3):
    base = np.random.default_rng(0).normal(0.5, 2.0, size=300)
    margins = base + gain + noise * np.random.default_rng(seed).normal(size=300)
    return Outcome(setting=setting, correct=tuple(margins > 0), margins=tuple(margins))


@pytest.mark.parametrize(
    ("gains", "recommended"),
    [
        ((0.0, 0.0, 0.0, 0.0), PLAIN),
        ((0.0, 0.3, 0.0, 0.3), RESIDUAL),
        ((0.0, 0.0, 0.3, 0.3), SEARCH),
        ((0.0, 0.3, 0.3, 0.9), BOTH),
        ((0.0, -0.5, -0.5, 0.4), BOTH),
        ((0.5, 0.0, 0.0, 0.0), PLAIN),
    ],
)
def test_the_simplest_setting_that_noise_allows_is_recommended(gains, recommended):
    settings = (PLAIN, RESIDUAL, SEARCH, BOTH)
    made = [
        outcome(each, gain, seed)
        for seed, (each, gain) in enumerate(zip(settings, gains, strict=True), start=5)
    ]
    choice = choose(made, seed=0)
    assert choice.recommended.setting == recommended
    assert {row: each.setting for row, each in choice.best.items()} == dict(
        zip(("plain", "residual", "search", "both"), settings, strict=True)
    )


def point(steps, alpha=0.0, eta=0.0, num_searches=1):
    return Setting(latent_steps=steps, memory_rate=alpha, step_size=eta, search_steps=num_searches)


@pytest.mark.parametrize(
    ("simpler", "others"),
    [
        # Within a row too: thoughts, search steps, size of the step, memory rate.
        (point(2), [point(6), point(9)]),
        (point(6, 0.1), [point(6, 0.3), point(6, 0.7)]),
        (point(6, 0.0, 0.1), [point(6, 0.0, 0.3), point(6, 0.0, -0.3)]),
        (point(6, 0.0, -0.1), [point(6, 0.0, 0.3)]),
        (point(6, 0.0, 0.1), [point(6, 0.0, -0.1)]),
        (point(6, 0.0, 0.3), [point(6, 0.0, 0.1, 2)]),
        (point(2, 0.0, 0.3, 2), [point(6, 0.0, 0.1)]),
        # No references before references, whatever the number of thoughts.
        (point(9, 0.7), [point(2, 0.0, 0.1), point(2, 0.1, 0.1)]),
    ],
)
def test_of_settings_within_noise_the_cheapest_is_recommended(simpler, others):
    plain = outcome(point(1), -2.0, 1)
    # A little better, but less than noise lets one see; by far better than plain.
    close = [outcome(each, 0.5 + 0.001, seed) for seed, each in enumerate(others, start=8)]
    choice = choose([plain, outcome(simpler, 0.5, 7), *close], seed=0)
    assert choice.recommended.setting == simpler
    clear = [outcome(each, 0.9, seed) for seed, each in enumerate(others, start=8)]
    choice = choose([plain, outcome(simpler, 0.5, 7), *clear], seed=0)
    assert choice.recommended.setting in others
    near = {each.setting for each in choice.rivals if each.within_noise}
    assert near == set(others) - {choice.best_of_all.setting}


@settings(max_examples=15)
@given(st.lists(st.floats(-0.1, 0.1), min_size=4, max_size=4), st.integers(0, 9))
def test_the_recommendation_is_never_more_complex_than_the_best_nor_worse_than_noise(gains, seed):
    rows = (PLAIN, RESIDUAL, SEARCH, BOTH)
    made = [
        outcome(each, gain, seed + number)
        for number, (each, gain) in enumerate(zip(rows, gains, strict=True), start=1)
    ]
    choice = choose(made, seed=0)
    assert choice.best_of_all.margin == max(each.margin for each in made)
    recommended = choice.recommended.setting
    assert rows.index(recommended) <= rows.index(choice.best_of_all.setting)
    simpler = rows[: rows.index(recommended)]
    assert not any(each.within_noise for each in choice.rivals if each.setting in simpler)


def test_the_best_of_many_settings_that_change_nothing_is_not_recommended():
    rates = np.linspace(0.01, 1.0, 30)
    wins = 0
    for trial in range(12):
        many = [
            outcome(Setting(latent_steps=6, memory_rate=float(rate)), 0.0, 1000 * trial + number)
            for number, rate in enumerate(rates, start=1)
        ]
        choice = choose([outcome(PLAIN, 0.0, 1000 * trial), *many], seed=trial)
        wins += choice.recommended.setting != PLAIN
    assert wins <= 2


def test_the_best_of_a_row_is_the_largest_margin_and_of_equals_the_cheapest():
    shorter = Setting(latent_steps=2)
    same = [dataclasses.replace(outcome(PLAIN, 0.0, 1), setting=each) for each in (PLAIN, shorter)]
    assert choose(same, seed=0).best["plain"].setting == shorter
    better = outcome(PLAIN, 1.0, 1)
    assert choose([same[1], better], seed=0).best["plain"].setting == PLAIN


def test_a_sweep_without_a_plain_setting_has_nothing_to_compare_with():
    with pytest.raises(LatentRefError, match="nothing to compare with"):
        choose([outcome(RESIDUAL, 0.0, 1)], seed=0)


def test_settings_that_have_no_effect_are_one():
    grid = Grid(latent_steps=(0, 1), memory_rates=(0.5,), step_sizes=(1.0,), search_steps=(1, 2))
    assert [each.label for each in grid.settings()] == [
        "T=0 alpha=0 eta=0",
        "T=1 alpha=0 eta=0",
        "T=1 alpha=0 eta=1*d/2",
        "T=1 alpha=0 eta=1*d/2 S=2",
    ]


def test_a_step_of_one_goes_the_whole_way_from_weak_to_strong():
    assert SEARCH.config(hidden_size=576).search_step_size == 0.5 * 576 / 2
