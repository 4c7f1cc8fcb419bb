"""The gate's rules: bounds and tests are the published ones, and errors are as rare as stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from lm_eval_latentref.evaluation.check_rules import (
    accuracy_drop,
    documents_to_settle,
    judge_paired,
    judge_scores,
    mean_drop,
    score_statistic,
)
from lm_eval_latentref.evaluation.results import Score

RUNS = 20_000
"""Simulated: 0.05 is then known to within 0.0047 (three standard errors)."""
NOISE = 3.0 * np.sqrt(0.05 * 0.95 / RUNS)


def judge(lost, gained, num, *, max_drop=0.02, significance=0.05, tests=1):
    drop = accuracy_drop(lost=lost, gained=gained, num_documents=num)
    adjusted = min(1.0, tests * drop.p_value)
    return judge_paired(
        drop, adjusted_p_value=adjusted, max_drop=max_drop, significance=significance
    )


def verdicts(lost_R, gained_R, num, max_drop):
    """The rule on many pairs of counts at once; a test below holds it to `judge`."""
    p_value_R = stats.binom.sf(lost_R - 1, lost_R + gained_R, 0.5)
    fails_R = (p_value_R <= 0.05) & ((lost_R - gained_R) / num > max_drop)
    bounded_R = score_statistic(lost_R, gained_R, num, max_drop) <= stats.norm.ppf(0.05)
    passes_R = bounded_R | (lost_R + gained_R == 0) | (max_drop == 0.0)
    return np.where(fails_R, "fail", np.where(passes_R, "pass", "inconclusive"))


def share(verdict, num, *, discordance, drop, max_drop, unchanged=True):
    """How often `verdict` is given to a candidate that is truly worse by `drop`.

    Runs in which no document changed count only if `unchanged`.
    """
    lost, gained = (discordance + drop) / 2.0, (discordance - drop) / 2.0
    generator = np.random.default_rng(0)
    counts_R3 = generator.multinomial(num, [lost, gained, 1.0 - lost - gained], size=RUNS)
    given_R = verdicts(counts_R3[:, 0], counts_R3[:, 1], num, max_drop) == verdict
    counted_R = unchanged | (counts_R3[:, 2] < num)
    return float((given_R & counted_R).mean())


@given(st.integers(0, 60), st.integers(0, 60), st.integers(120, 3000), st.sampled_from([0, 0.02]))
def test_the_rule_that_is_simulated_is_the_gates(lost, gained, num, max_drop):
    simulated = verdicts(np.array([lost]), np.array([gained]), num, max_drop)
    assert judge(lost, gained, num, max_drop=max_drop).verdict == simulated[0]


@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.1, 0.4])
@pytest.mark.parametrize("num", [100, 500, 2000, 5000])
def test_a_candidate_that_is_max_drop_worse_passes_in_at_most_a_twentieth(num, discordance):
    # Fewer than 149 documents of which none changed pass because the rule says so, although
    # 0.98^148 > 0.05 of such candidates change none.
    options = {"discordance": discordance, "drop": 0.02, "max_drop": 0.02}
    assert share("pass", num, **options, unchanged=num >= 149) <= 0.05 + NOISE


@pytest.mark.parametrize("discordance", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("num", [100, 1000, 5000])
@pytest.mark.parametrize("max_drop", [0.0, 0.02])
def test_an_equal_candidate_fails_in_at_most_a_twentieth(num, discordance, max_drop):
    failed = share("fail", num, discordance=discordance, drop=0.0, max_drop=max_drop)
    assert failed <= 0.05 + NOISE


def test_enough_documents_distinguish_a_good_from_a_bad_candidate():
    assert share("pass", 5000, discordance=0.1, drop=0.0, max_drop=0.02) > 0.95
    assert share("fail", 5000, discordance=0.1, drop=0.04, max_drop=0.02) > 0.95


def exact_size(num, discordance, drop):
    """Probability that the score bound is at most `drop` where that is the true drop."""
    lost_share, gained_share = (discordance + drop) / 2.0, (discordance - drop) / 2.0
    gained_N = np.arange(num + 1)
    threshold = stats.norm.ppf(0.05)
    low_N, high_N = np.full(num + 1, -1), num - gained_N
    while (low_N < high_N).any():  # the most that may be lost beside each number gained
        middle_N = (low_N + high_N + 1) // 2
        passes_N = score_statistic(middle_N, gained_N, num, drop) <= threshold
        low_N, high_N = (
            np.where(passes_N, middle_N, low_N),
            np.where(passes_N, high_N, middle_N - 1),
        )
    beside_N = stats.binom.cdf(low_N, num - gained_N, lost_share / (1.0 - gained_share))
    return float((stats.binom.pmf(gained_N, num, gained_share) * beside_N).sum())


@pytest.mark.parametrize("drop", [0.01, 0.02, 0.05, 0.1])
def test_the_bound_holds_exactly_at_every_size_and_discordance(drop):
    for num in (100, 137, 200, 300, 500, 777, 1319, 2000, 5000):
        for discordance in (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.4):
            if discordance >= drop:
                size = exact_size(num, discordance, drop)
                assert size <= 0.05, f"{size} at {num} documents, discordance {discordance}"
    assert exact_size(5000, 0.2, drop) > 0.045  # and gives little away


def likeliest(lost, gained, num, drop):
    """The score statistic, its likeliest share of gained documents found by brute force."""

    def unlikely(share):
        same = 1.0 - 2.0 * share - drop
        terms = ((lost, share + drop), (gained, share), (num - lost - gained, same))
        return -sum(count * np.log(p) for count, p in terms if count)

    bounds, options = (1e-12, (1.0 - drop) / 2.0 - 1e-12), {"xatol": 1e-12}
    best = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options=options).x
    return (lost - gained + 0.5 - num * drop) / np.sqrt(num * (2.0 * best + drop - drop**2))


@pytest.mark.parametrize(
    ("lost", "gained", "num", "drop"), [(31, 12, 1000, 0.02), (5, 9, 80, 0.05), (3, 3, 50, 0.3)]
)
def test_the_score_statistic_is_that_of_the_likeliest_shares(lost, gained, num, drop):
    expected = pytest.approx(likeliest(lost, gained, num, drop), rel=1e-5)
    assert score_statistic(lost, gained, num, drop) == expected


@given(st.integers(0, 60), st.integers(0, 60), st.integers(120, 3000))
def test_swapping_the_runs_turns_the_bounds_round(lost, gained, num):
    there = accuracy_drop(lost=lost, gained=gained, num_documents=num)
    back = accuracy_drop(lost=gained, gained=lost, num_documents=num)
    assert (there.value, there.lower, there.upper) == (-back.value, -back.upper, -back.lower)
    assert there.lower <= there.value <= there.upper
    more = accuracy_drop(lost=lost + 1, gained=gained, num_documents=num)
    assert more.upper >= there.upper


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_p_value_is_that_of_the_one_sided_exact_test(lost, gained):
    drop = accuracy_drop(lost=lost, gained=gained, num_documents=100)
    if lost + gained:
        expected = stats.binomtest(lost, lost + gained, alternative="greater").pvalue
        assert drop.p_value == pytest.approx(expected)
    else:
        assert drop.p_value == 1.0


@pytest.mark.parametrize(
    ("lost", "gained", "num", "options", "verdict"),
    [
        (60, 5, 1000, {}, "fail"),
        (60, 5, 1000, {"max_drop": 0.06}, "inconclusive"),
        (60, 5, 1000, {"max_drop": 0.08}, "pass"),
        (6, 5, 1000, {}, "pass"),
        (30, 15, 500, {}, "fail"),
        (30, 15, 500, {"tests": 10}, "inconclusive"),
        (30, 15, 500, {"significance": 0.001}, "inconclusive"),
        (0, 0, 10, {}, "pass"),
        (1, 0, 10, {}, "inconclusive"),
        (5, 0, 1000, {"max_drop": 0.0}, "fail"),
        (4, 0, 1000, {"max_drop": 0.0}, "pass"),
    ],
)
def test_a_drop_fails_if_it_is_sure_and_large_and_passes_if_it_is_surely_small(
    lost, gained, num, options, verdict
):
    assert judge(lost, gained, num, **options).verdict == verdict


@pytest.mark.parametrize(("lost", "gained", "num"), [(6, 4, 200), (13, 8, 200), (40, 30, 1000)])
def test_the_documents_that_would_settle_it_do_at_the_same_shares(lost, gained, num):
    outcome = judge(lost, gained, num)
    assert outcome.verdict == "inconclusive"
    assert f"about {outcome.detectable} documents" in outcome.reason
    grown = 1.1 * outcome.detectable / num
    counts = [round(grown * count) for count in (lost, gained, num)]
    assert judge(*counts).verdict != "inconclusive"
    shrunk = 0.7 * outcome.detectable / num
    if shrunk > 1.0:
        assert judge(*(round(shrunk * count) for count in (lost, gained, num))).detectable


def test_no_number_of_documents_settles_a_drop_of_exactly_max_drop():
    drop = accuracy_drop(lost=30, gained=10, num_documents=1000)
    assert documents_to_settle(drop, max_drop=0.02, significance=0.05) is None


def test_other_values_are_judged_by_students_t():
    generator = np.random.default_rng(1)
    first_N, second_N = generator.uniform(size=(2, 50))
    drop = mean_drop(first_N, second_N)
    expected = stats.ttest_rel(first_N, second_N, alternative="greater")
    assert drop.p_value == pytest.approx(expected.pvalue)
    low, high = stats.ttest_rel(first_N, second_N).confidence_interval(0.9)
    assert (drop.lower, drop.upper) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("first", "second", "p_value"), [([0.5], [0.5], 1.0), ([1.0, 0.5], [0.5, 0.0], 0.25)]
)
def test_differences_without_a_spread_have_a_p_value(first, second, p_value):
    assert mean_drop(first, second).p_value == p_value


@pytest.mark.parametrize(
    ("before", "after", "higher_is_better", "verdict"),
    [
        (0.50, 0.46, True, "pass"),
        (0.50, 0.4599, True, "fail"),
        (0.50, 0.4599, None, "fail"),
        (10.0, 10.8, False, "pass"),
        (10.0, 10.9, False, "fail"),
        (10.0, 3.0, False, "pass"),
        (0.50, 0.60, True, "pass"),
    ],
)
def test_without_pairs_a_value_may_be_worse_by_the_tolerance(
    before, after, higher_is_better, verdict
):
    scores = [
        Score(value=value, stderr=0.01, higher_is_better=higher_is_better)
        for value in (before, after)
    ]
    result = judge_scores("t", "m", *scores, tolerance=0.08 * before)
    assert result.verdict == verdict
    is_better = after == 3.0 or after == 0.60
    assert ("better than the baseline" in result.reason) == is_better
