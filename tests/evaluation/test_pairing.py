"""Paired tests of several rows: against scipy, by hand, and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm_eval_latentref.evaluation.statistics import (
    holm,
    mcnemar,
    paired_difference,
    paired_p,
    tiers,
    unpaired_p,
)

NUM_BOARDS = 1500
QUICK = {"seed": 0, "num_resamples": 1000}
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def sides(pairs):
    return tuple([np.array(side, dtype=float)] for side in zip(*pairs, strict=True))


@given(PAIRS)
def test_one_task_of_right_and_wrong_is_the_exact_mcnemar_test(pairs):
    first, second = sides(pairs)
    assert paired_p(first, second) == pytest.approx(mcnemar(first[0], second[0]).p_value)


@given(PAIRS, st.integers(1, 39))
def test_tasks_of_one_size_are_the_exact_test_of_all_documents(pairs, repeats):
    first, second = sides(pairs * 2)
    halves = [np.split(side[0], 2) for side in (first, second)]
    assert paired_p(*halves) == pytest.approx(mcnemar(first[0], second[0]).p_value)


def test_documents_of_a_small_task_weigh_more():
    first, second = [np.zeros(2), np.zeros(4)], [np.array([1.0, 0]), np.array([0, 1.0, 1, 0])]
    signs = itertools.product((-1, 1), repeat=3)
    leads = [a / 2 + (b + c) / 4 for a, b, c in signs]
    assert paired_p(first, second) == pytest.approx(np.mean([abs(lead) >= 1 for lead in leads]))


def test_many_documents_of_several_sizes_are_tested_by_the_same_variance():
    rng = np.random.default_rng(0)
    first = [(rng.random(n) < 0.5).astype(float) for n in (4000, 3000)]
    second = [np.where(rng.random(len(v)) < 0.2, 1 - v, v) for v in first]
    flips = [np.sign(b - a) / (2 * len(a)) for a, b in zip(first, second, strict=True)]
    lead = abs(sum(f.sum() for f in flips))
    values = np.concatenate(flips)
    values = values[values != 0]
    drawn = rng.choice([-1, 1], size=(4000, len(values))) @ values
    assert paired_p(first, second) == pytest.approx(np.mean(np.abs(drawn) >= lead), abs=0.03)


def test_other_values_are_tested_as_a_bootstrap_would():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=400), rng.normal(0.15, size=400)
    means = rng.choice(second - first, size=(20_000, 400)).mean(axis=1)
    wanted = 2 * min(np.mean(means <= 0), np.mean(means >= 0))
    assert paired_p([first], [second]) == pytest.approx(wanted, abs=0.01)


def test_repeats_of_a_document_are_one_observation():
    rng = np.random.default_rng(2)
    first, second = (rng.random((1, 60)) < 0.5).astype(float), (rng.random((1, 60)) < 0.6)
    once = paired_p([first], [second])
    often = paired_p([first.repeat(5, axis=0)], [second.astype(float).repeat(5, axis=0)])
    assert often == pytest.approx(once)
    wide, same = (
        paired_difference([first.repeat(n, axis=0)], [second.repeat(n, axis=0)], seed=0)
        for n in (1, 5)
    )
    assert wide == same


def test_equal_answers_show_nothing():
    values = [np.array([1.0, 0.0, 1.0])]
    assert paired_p(values, values) == 1.0
    assert paired_p([np.array([0.5])], [np.array([0.7])]) == 1.0
    interval = paired_difference(values, values, seed=0)
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_values_of_other_documents_are_no_pairs():
    with pytest.raises(ValueError, match="the same shape"):
        paired_p([np.zeros(3)], [np.zeros(4)])


@pytest.mark.parametrize(("share", "difference"), [(0.1, 0.0), (0.1, 0.05), (0.2, 0.02)])
def test_intervals_cover_as_often_as_they_say(share, difference):
    rng = np.random.default_rng(3)
    chances = [(share + difference) / 2, 1 - share, (share - difference) / 2]
    hits = 0
    for counts in rng.multinomial(500, chances, size=NUM_BOARDS):
        d_N = np.repeat([1.0, 0.0, -1.0], counts)
        interval = paired_difference([np.maximum(-d_N, 0)], [np.maximum(d_N, 0)], **QUICK)
        hits += interval.low - 1e-12 <= difference <= interval.high + 1e-12
    assert hits / NUM_BOARDS == pytest.approx(0.95, abs=0.01)


def test_intervals_of_tasks_together_cover_as_often_as_they_say():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(NUM_BOARDS):
        differences = [rng.choice([-1.0, 0, 0, 0, 0, 1], size=n) for n in (200, 800)]
        pairs = [(np.maximum(-d, 0), np.maximum(d, 0)) for d in differences]
        interval = paired_difference(*zip(*pairs, strict=True), **QUICK)
        hits += interval.low <= 0 <= interval.high
    assert hits / NUM_BOARDS == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("num_values", [3, 500])
def test_the_interval_is_scipys_bootstrap(num_values):
    rng = np.random.default_rng(5)
    first = rng.integers(0, num_values, 400) / num_values
    second = first + rng.integers(0, num_values, 400) / num_values
    interval = paired_difference([first], [second], seed=0)
    wanted = stats.bootstrap(
        ((second - first),), np.mean, method="percentile", n_resamples=9999, rng=2
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((wanted.low, wanted.high), abs=0.005)


def test_standard_errors_alone_give_the_normal_test():
    assert unpaired_p(0.1, 0.03, 0.04) == pytest.approx(2 * stats.norm.sf(2.0))
    assert (unpaired_p(0.0, 0.0, 0.0), unpaired_p(0.1, 0.0, 0.0)) == (1.0, 0.0)


def test_holm_equals_a_calculation_by_hand():
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5 * 1, none below the one before.
    assert holm([0.02, 0.01, 0.5, 0.03]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_tier_ends_where_a_row_is_worse_than_its_best():
    worse = np.zeros((4, 4), dtype=bool)
    worse[0, 2] = worse[1, 3] = True
    assert tiers(worse) == [1, 1, 2, 2]
    worse[2, 3] = True
    assert tiers(worse) == [1, 1, 2, 3]
    assert tiers([]) == []


def board(rng, better=0.0, *, num_rows=10, num=2000, discordance=0.2):
    """Rows of equal truth (the first `better`) of which any two disagree on so many documents."""
    flip = (1 - np.sqrt(1 - 2 * discordance)) / 2
    base = rng.random(num) < 0.5
    rows = base ^ (rng.random((num_rows, num)) < flip)
    rows[0] |= ~rows[0] & (rng.random(num) < 2 * better)
    return rows.astype(float)


def ranks_of(rows):
    order = np.argsort(-rows.mean(axis=1), kind="stable")
    pairs = list(itertools.combinations(range(len(rows)), 2))
    adjusted = holm([paired_p([rows[order[a]]], [rows[order[b]]]) for a, b in pairs])
    worse = np.zeros((len(rows), len(rows)), dtype=bool)
    for (a, b), p in zip(pairs, adjusted, strict=True):
        worse[a, b] = p < 0.05
    ranks = np.empty(len(rows), dtype=int)
    ranks[order] = tiers(worse)
    return ranks


def test_rows_of_equal_truth_share_a_rank_on_most_boards():
    rng = np.random.default_rng(6)
    shared = [len(set(ranks_of(board(rng)))) == 1 for _ in range(100)]
    assert np.mean(shared) >= 0.95


def test_a_row_that_is_better_by_five_points_is_apart_from_the_others():
    rng = np.random.default_rng(7)
    boards = [ranks_of(board(rng, better=0.05)) for _ in range(60)]
    apart = [ranks[0] < other for ranks in boards for other in ranks[1:]]
    assert np.mean(apart) >= 0.9
