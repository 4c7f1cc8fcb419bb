"""Standard errors, paired tests and intervals: against scipy, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.metrics import mean_stderr
from scipy import stats

from lm_eval_latentref.evaluation.statistics import (
    detectable_difference,
    detectable_mean,
    interval_over_seeds,
    joint_intervals,
    mcnemar,
    mean_intervals,
    paired_interval,
    resampled_means,
    standard_error,
)

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)
NUMBERS = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=30)


@given(NUMBERS)
def test_the_standard_error_is_lm_evals_and_scipys(values):
    assert standard_error(values) == pytest.approx(mean_stderr(values))
    assert standard_error(values) == pytest.approx(float(stats.sem(values)), abs=1e-12)


def test_one_document_has_no_standard_error():
    assert math.isnan(standard_error([1.0]))


def brute_force_p(only_first, only_second):
    """Two-sided probability over all outcomes of the coin that are no likelier than this one."""
    total = only_first + only_second
    here = math.comb(total, only_first)
    return sum(ways for k in range(total + 1) if (ways := math.comb(total, k)) <= here) / 2**total


@given(ANSWERS)
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_documents(pairs):
    first, second = zip(*pairs, strict=True)
    actual = mcnemar(first, second)
    assert actual.only_first == sum(a and not b for a, b in pairs)
    assert actual.only_second == sum(b and not a for a, b in pairs)
    assert actual.p_value == pytest.approx(brute_force_p(actual.only_first, actual.only_second))


@given(ANSWERS)
def test_mcnemar_does_not_mind_which_comes_first(pairs):
    first, second = zip(*pairs, strict=True)
    assert mcnemar(first, second).p_value == pytest.approx(mcnemar(second, first).p_value)


def test_mcnemar_of_equal_answers_shows_nothing():
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def test_paired_values_must_be_equally_many():
    with pytest.raises(ValueError, match="the same shape"):
        mcnemar([True], [True, False])


@pytest.mark.parametrize("values", [(0.0, 1.0, 5.0), (-1.0, -1.0, 2.0, 0.5)])
def test_the_bootstrap_draws_all_resamples_as_often_as_they_are_likely(values):
    every = [np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))]
    (means,) = resampled_means(np.array([values]), seed=0, num_resamples=40_000)
    for level in np.unique(np.round(every, 9)):
        wanted = np.mean(np.abs(every - level) < 1e-6)
        assert np.mean(np.abs(means - level) < 1e-6) == pytest.approx(wanted, abs=0.01)


def test_the_interval_equals_scipys():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=200), rng.normal(0.3, size=200)
    actual = paired_interval(second, first, seed=1)
    wanted = stats.bootstrap(
        ((second - first),), np.mean, method="percentile", n_resamples=10_000, rng=2
    ).confidence_interval
    assert (actual.low, actual.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)


@settings(max_examples=30)
@given(NUMBERS, st.floats(-5, 5), st.integers(0, 100))
def test_intervals_are_seeded_and_move_with_the_values(values, shift, seed):
    zeros = [0.0] * len(values)
    first = paired_interval(values, zeros, seed=seed, num_resamples=300)
    assert first == paired_interval(values, zeros, seed=seed, num_resamples=300)
    moved = paired_interval([v + shift for v in values], zeros, seed=seed, num_resamples=300)
    assert moved.low == pytest.approx(first.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(first.high + shift, abs=1e-9)
    turned = paired_interval(zeros, values, seed=seed, num_resamples=300)
    assert (turned.low, turned.high) == pytest.approx((-first.high, -first.low), abs=1e-9)


def test_rows_get_the_intervals_they_would_get_alone():
    rows = np.random.default_rng(0).normal(size=(3, 50))
    together = mean_intervals(rows, seed=3, num_resamples=500)
    alone = [mean_intervals(row[None], seed=3, num_resamples=500)[0] for row in rows]
    for each, other in zip(together, alone, strict=True):
        assert (each.low, each.high) == pytest.approx((other.low, other.high))


def share_above_zero(intervals):
    return any(each.low > 0 for each in intervals)


def test_picking_the_best_of_settings_that_change_nothing_rarely_shows_an_effect():
    rng = np.random.default_rng(11)
    runs = [rng.normal(size=(20, 80)) for _ in range(150)]
    jointly = np.mean(
        [share_above_zero(joint_intervals(r, seed=0, num_resamples=400)) for r in runs]
    )
    singly = np.mean([share_above_zero(mean_intervals(r, seed=0, num_resamples=400)) for r in runs])
    assert jointly < 0.07
    assert singly > 0.25


def test_the_joint_interval_of_one_setting_is_about_its_own():
    values = np.random.default_rng(2).normal(0.2, size=(1, 300))
    joint, alone = joint_intervals(values, seed=0)[0], mean_intervals(values, seed=0)[0]
    assert (joint.low, joint.high) == pytest.approx((alone.low, alone.high), abs=0.01)


def test_settings_equal_to_plain_have_an_interval_of_width_zero():
    zero, other = joint_intervals([[0.0] * 10, list(range(10))], seed=0)
    assert (zero.low, zero.high) == (0.0, 0.0)
    assert zero.includes_zero
    assert other.low < other.mean < other.high


@pytest.mark.parametrize(("num", "share"), [(300, 0.1), (447, 0.2), (1000, 0.05)])
def test_a_detectable_difference_is_detected_four_times_in_five(num, share):
    difference = detectable_difference(num, discordant_share=share)
    rng = np.random.default_rng(0)
    chances = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    counts = rng.multinomial(num, chances, size=2000)
    actual = np.mean([stats.binomtest(b, b + c).pvalue < 0.05 for b, c, _ in counts if b + c])
    # The exact test keeps less than its 5 %, so it detects a little less often than designed.
    assert actual == pytest.approx(0.78, abs=0.05)


@given(st.integers(8, 5000), st.floats(0, 1))
def test_more_documents_and_less_disagreement_show_smaller_effects(num, share):
    here = detectable_difference(num, discordant_share=share)
    assert detectable_difference(2 * num, discordant_share=share) <= here
    assert detectable_difference(num, discordant_share=share / 2) <= here + 1e-12
    assert here >= 6 / num


def test_the_interval_over_seeds_is_students_and_needs_three_seeds():
    values = [0.1, 0.2, 0.6]
    actual = interval_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (actual.mean, actual.low, actual.high) == pytest.approx((0.3, low, high))
    same = interval_over_seeds([0.5] * 3)
    assert (same.low, same.high) == (0.5, 0.5)
    assert interval_over_seeds(values[:2]) is None


def test_too_few_documents_show_nothing():
    assert detectable_difference(4, discordant_share=0.5) == 1.0
    with pytest.raises(ValueError, match="impossible"):
        detectable_difference(0, discordant_share=0.5)


def test_the_detectable_mean_is_the_usual_multiple_of_the_standard_error():
    values = [0.0, 1.0, 3.0, 2.0]
    assert detectable_mean(values) == pytest.approx(2.8016 * standard_error(values), rel=1e-4)
