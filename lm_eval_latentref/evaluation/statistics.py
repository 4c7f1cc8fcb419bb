"""Statistics for paired answers: exact McNemar, bootstrap and joint intervals, Holm, tiers.

    mcnemar([True, False], [True, True]).p_value
    paired_p([values_a_N], [values_b_N])                # one array for each task
    holm([0.01, 0.04, 0.03])                            # [0.03, 0.06, 0.06]
    tiers([[False, True], [False, False]])              # [1, 2]

Array suffixes: N documents of a task, S settings, R resamples, K rows, U distinct values.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 10_000
MIN_SEEDS = 3
_MOST_VALUES = 64
_MOST_OUTCOMES = 100_000
_CHUNK = 500  # resamples held at once: memory stays small on thousands of documents

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of two runs on the same documents."""

    only_first: int
    """The number of documents that only the first run has right."""
    only_second: int
    """The number of documents that only the second run has right."""
    p_value: float
    """Probability of a split of the discordant documents at least this uneven under p = 1/2."""


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean (sample standard deviation / sqrt(n)), as in lm-eval.

    For 0/1 values this is the standard error of an accuracy. It is nan for n < 2.
    """
    values_N = np.asarray(values, dtype=float)
    if len(values_N) < 2:
        return math.nan
    return float(values_N.std(ddof=1) / math.sqrt(len(values_N)))


def proportion_interval(values: ArrayLike) -> Interval:
    """The mean of 0/1 values, with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    values_N = np.asarray(values, dtype=float)
    bounds = binomtest(round(values_N.sum()), len(values_N)).proportion_ci(method="wilson")
    return Interval(float(values_N.mean()), float(bounds.low), float(bounds.high))


def mcnemar(
    first: Sequence[bool] | NDArray[Any],
    second: Sequence[bool] | NDArray[Any],
    *,
    alternative: str = "two-sided",
) -> McNemar:
    """Exact test of whether two runs have the same accuracy on the same documents.

    Only documents on which the runs disagree count (McNemar 1947, in the exact binomial form).

    Args:
        alternative: "two-sided", "greater" (the first is right more often) or "less".
    """
    from scipy.stats import binomtest

    first_N, second_N = (values_N.astype(bool) for values_N in _paired(first, second))
    only_first = int((first_N & ~second_N).sum())
    only_second = int((second_N & ~first_N).sum())
    discordant = only_first + only_second
    test = binomtest(only_first, discordant, alternative=alternative) if discordant else None
    return McNemar(only_first, only_second, float(test.pvalue) if test else 1.0)


def paired_interval(
    second: ArrayLike,
    first: ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Percentile bootstrap interval of the mean of `second - first` over the same documents."""
    second_N, first_N = _paired(second, first)
    differences_N = second_N.astype(float) - first_N.astype(float)
    return mean_intervals(
        differences_N[None], seed=seed, confidence=confidence, num_resamples=num_resamples
    )[0]


def mean_intervals(
    differences_SN: ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> list[Interval]:
    """Percentile bootstrap interval of the mean of each of S rows; not joint over rows."""
    values_SN = np.asarray(differences_SN, dtype=float)
    means_SR = resampled_means(values_SN, seed=seed, num_resamples=num_resamples)
    tail = (1.0 - confidence) / 2.0
    bounds_2S = np.quantile(means_SR, [tail, 1.0 - tail], axis=1)
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(values_SN.mean(axis=1), *bounds_2S, strict=True)
    ]


def joint_intervals(
    differences_SN: ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> list[Interval]:
    """Bootstrap max-t intervals of S means, which hold jointly with the stated confidence.

    The best of many settings looks better than it is. For each resample, the distance of each of
    the S resampled means from its sample mean is divided by the standard error, and the largest
    quotient is taken. The half-width of a setting is its standard error times the `confidence`
    quantile of these maxima. So if no setting changes anything, some interval excludes 0 in only
    1 - `confidence` of all cases.
    """
    values_SN = np.asarray(differences_SN, dtype=float)
    means_S = values_SN.mean(axis=1)
    errors_S = np.array([standard_error(row_N) for row_N in values_SN])
    varies_S = errors_S > 0
    width = 0.0
    if varies_S.any():
        means_SR = resampled_means(values_SN[varies_S], seed=seed, num_resamples=num_resamples)
        deviations_SR = np.abs(means_SR - means_S[varies_S, None]) / errors_S[varies_S, None]
        width = float(np.quantile(deviations_SR.max(axis=0), confidence))
    return [
        Interval(float(mean), float(mean - width * error), float(mean + width * error))
        for mean, error in zip(means_S, np.nan_to_num(errors_S), strict=True)
    ]


def resampled_means(values_SN: Floats, *, seed: int, num_resamples: int) -> Floats:
    """Means (S, R) of each row over the same R resamples of the N documents, with replacement."""
    generator = np.random.default_rng(seed)
    num_documents = values_SN.shape[1]
    shares_N = np.full(num_documents, 1.0 / num_documents)
    parts = []
    for start in range(0, num_resamples, _CHUNK):
        # A mean depends only on how often each document is drawn.
        size = min(_CHUNK, num_resamples - start)
        counts_RN = generator.multinomial(num_documents, shares_N, size=size)
        parts.append(values_SN @ counts_RN.T / num_documents)
    return np.concatenate(parts, axis=1)


def interval_over_seeds(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """The mean of values, one for each training seed, with Student's t interval.

    It is None for fewer than three seeds: the interval of two, with one degree of freedom, is 12.7
    standard errors wide on each side and says nothing.
    """
    from scipy.stats import t

    num = len(values)
    if num < MIN_SEEDS:
        return None
    mean = float(np.mean(values))
    width = float(t.ppf((1.0 + confidence) / 2.0, num - 1)) * standard_error(values)
    return Interval(mean, mean - width, mean + width)


def detectable_difference(
    num_documents: int,
    *,
    discordant_share: float,
    significance: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest difference of two accuracies that a paired test on n documents can detect.

    This is the solution for d of Connor's (1987) formula for the sample size of McNemar's test:
    n d^2 = (z_{1-a/2} sqrt(psi) + z_power sqrt(psi - d^2))^2. Here psi is the larger of d and
    `discordant_share`, the share of documents on which the two disagree. The result is at most 1.
    It is at least the share of documents that must change, all in the same direction, for the exact
    test to reach a p-value of `significance`.

    Raises:
        ValueError: no documents, or a share outside [0, 1].
    """
    if num_documents < 1 or not 0.0 <= discordant_share <= 1.0:
        raise ValueError(f"impossible: {num_documents} documents, {discordant_share=}")
    from scipy.optimize import brentq

    normal = NormalDist()
    alpha, beta = normal.inv_cdf(1.0 - significance / 2.0), normal.inv_cdf(power)

    def excess(difference: float) -> float:
        share = max(discordant_share, difference)
        needed = alpha * math.sqrt(share) + beta * math.sqrt(share - difference**2)
        return math.sqrt(num_documents) * difference - needed

    # The fewest discordant documents k that can be significant: 2 * (1/2)^k <= significance.
    fewest = math.ceil(1.0 - math.log2(significance)) / num_documents
    smallest = brentq(excess, 1e-12, 1.0, xtol=1e-15) if excess(1.0) > 0.0 else 1.0
    return min(1.0, max(smallest, fewest))


def detectable_mean(
    differences: ArrayLike, *, significance: float = 0.05, power: float = 0.8
) -> float:
    """The smallest mean difference that a paired test can detect, given the differences' spread."""
    normal = NormalDist()
    factor = normal.inv_cdf(1.0 - significance / 2.0) + normal.inv_cdf(power)
    return factor * standard_error(differences)


def _paired(first: Any, second: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    first_N, second_N = np.asarray(first), np.asarray(second)
    if first_N.shape != second_N.shape or first_N.ndim != 1 or not len(first_N):
        raise ValueError(
            f"paired values must have the same shape (N,): {first_N.shape} and {second_N.shape}"
        )
    return first_N, second_N


def mean_of_repeats(values: ArrayLike) -> Floats:
    """The mean (N,) over repeats or seeds of values (repeats, N) or (N,).

    Tests and intervals then treat documents, not repeats, as the sample.
    """
    array = np.asarray(values, dtype=float)
    return array.mean(axis=0) if array.ndim == 2 else array


def paired_p(first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> float:
    """Two-sided p-value of the difference between two rows in their mean over tasks.

    If all values are 0 or 1, this is a sign-flip test: under the null hypothesis, each document on
    which the rows disagree is equally likely to favour either row. For one task, or tasks of equal
    size, that is the exact McNemar test. For tasks of different sizes, documents count by their
    weight in the mean; the test is exact up to 100,000 outcomes and uses a normal distribution of
    the same variance above that. For other values, it is a normal test with the standard error of
    the differences.

    Args:
        first: for each task, the values (N,) or (repeats, N).
        second: values of the same documents.
    """
    firsts, seconds = ([mean_of_repeats(v) for v in values] for values in (first, second))
    differences = _differences(firsts, seconds)
    weights = [1.0 / (len(differences) * len(d_N)) for d_N in differences]
    if all(np.isin(v_N, (0.0, 1.0)).all() for v_N in (*firsts, *seconds)):
        return _flipping_p(differences, weights)
    mean = sum(float(d_N.mean()) for d_N in differences) / len(differences)
    errors = [standard_error(d_N) / len(differences) for d_N in differences]
    spread = math.sqrt(sum(error**2 for error in errors))
    if not spread > 0:  # equal everywhere, or too few documents for a spread
        return 1.0
    return _normal_p(mean / spread)


def paired_difference(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """The mean over tasks of `second - first` and its percentile bootstrap interval.

    Documents are resampled within their task. The arguments are those of `paired_p`.
    """
    firsts, seconds = ([mean_of_repeats(v) for v in values] for values in (first, second))
    differences = _differences(firsts, seconds)
    means_R = np.zeros(num_resamples)
    for place, d_N in enumerate(differences):
        means_R += _resampled(d_N, (seed, place), num_resamples) / len(differences)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means_R, [tail, 1.0 - tail])
    mean = sum(float(d_N.mean()) for d_N in differences) / len(differences)
    return Interval(mean, float(low), float(high))


def unpaired_p(difference: float, *errors: float) -> float:
    """Two-sided p-value of a difference from standard errors alone (normal distribution)."""
    spread = math.hypot(*errors)
    if spread == 0.0:
        return float(difference == 0.0)
    return _normal_p(difference / spread)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the same order."""
    p_K = np.asarray(p_values, dtype=float)
    order_K = np.argsort(p_K, kind="stable")
    factors_K = np.arange(len(p_K), 0, -1)
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order_K] = np.minimum(1.0, np.maximum.accumulate(p_K[order_K] * factors_K))
    return [float(p) for p in adjusted_K]


def tiers(is_worse: Sequence[Sequence[bool]]) -> list[int]:
    """Ranks from 1, shared by rows that do not differ significantly from the best of their tier.

    Args:
        is_worse: (K, K), for rows sorted from best to worst: `is_worse[a][b]` says whether row b
            is significantly worse than row a.
    """
    ranks: list[int] = []
    best = 0
    for place in range(len(is_worse)):
        if is_worse[best][place]:
            best = place
        ranks.append(ranks[-1] + (best == place) if ranks else 1)
    return ranks


def _differences(firsts: Sequence[Floats], seconds: Sequence[Floats]) -> list[Floats]:
    shapes = [v_N.shape for v_N in firsts], [v_N.shape for v_N in seconds]
    if shapes[0] != shapes[1] or not all(v_N.size for v_N in firsts) or not firsts:
        raise ValueError(f"paired values must have the same shapes: {shapes[0]} and {shapes[1]}")
    return [second_N - first_N for first_N, second_N in zip(firsts, seconds, strict=True)]


def _normal_p(z: float) -> float:
    """Two-sided p-value of a standard normal `z`."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def _flipping_p(differences: Sequence[Floats], weights: Sequence[float]) -> float:
    """The share of all sign flips of the differences whose weighted sum is at least as large."""
    from scipy.stats import binom

    flips: Counter[float] = Counter()
    lead = 0.0
    for d_N, weight in zip(differences, weights, strict=True):
        flips[weight] += int(np.count_nonzero(d_N))
        lead += weight * float(d_N.sum())
    if math.prod(num + 1 for num in flips.values()) > _MOST_OUTCOMES:
        spread = math.sqrt(sum(weight**2 * num for weight, num in flips.items()))
        return _normal_p(lead / spread)
    sums_U, chances_U = np.zeros(1), np.ones(1)
    for weight, num in flips.items():
        ups = np.arange(num + 1)
        sums_U = (sums_U[:, None] + weight * (2.0 * ups - num)).ravel()
        chances_U = (chances_U[:, None] * binom.pmf(ups, num, 0.5)).ravel()
    slack = 1e-9 * min(weights)
    return float(min(1.0, chances_U[np.abs(sums_U) >= abs(lead) - slack].sum()))


def _resampled(differences_N: Floats, seed: tuple[int, int], num_resamples: int) -> Floats:
    """The means (R,) of resamples of the documents with replacement."""
    values_U, counts_U = np.unique(differences_N, return_counts=True)
    num = len(differences_N)
    if len(values_U) > _MOST_VALUES:
        drawn_R: Floats = _counts(num, seed, num_resamples) @ differences_N / num
        return drawn_R
    # A mean depends only on how often each value is drawn.
    counts_RU = np.random.default_rng(seed).multinomial(num, counts_U / num, size=num_resamples)
    means_R: Floats = counts_RU @ values_U / num
    return means_R


@functools.lru_cache(maxsize=4)
def _counts(num: int, seed: tuple[int, int], num_resamples: int) -> NDArray[np.float32]:
    """How often each of `num` documents is drawn in each resample (R, N)."""
    shares_N = np.full(num, 1.0 / num)
    counts_RN = np.random.default_rng(seed).multinomial(num, shares_N, size=num_resamples)
    return counts_RN.astype(np.float32)
