"""How far a number on n documents can be trusted: standard errors, paired tests, intervals.

    mcnemar([True, False, True], [True, True, True]).p_value
    paired_interval(margins_b, margins_a, seed=0)       # of the mean difference b - a
    detectable_difference(447, discordant_share=0.1)    # 0.042: smaller effects do not show

Two settings of one model answer the same documents, so everything that compares is paired.
Deliberately knows no file format and no model; whatever draws numbers takes a seed.

Array suffixes: S settings, N documents, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 10_000
_CHUNK = 500  # resamples held at once: memory stays small on thousands of documents

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds that hold it with the stated confidence."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class McNemar:
    """An exact McNemar test of two raters on the same documents."""

    only_first: int
    """Documents that only the first has right."""
    only_second: int
    p_value: float
    """Probability of a split of the discordant documents at least this uneven under p = 1/2."""


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean (sample deviation over sqrt(n)), as lm-eval's; nan for n < 2.

    For 0/1 values this is the standard error of an accuracy.
    """
    values_N = np.asarray(values, dtype=float)
    if len(values_N) < 2:
        return math.nan
    return float(values_N.std(ddof=1) / math.sqrt(len(values_N)))


def mcnemar(
    first: Sequence[bool] | NDArray[Any],
    second: Sequence[bool] | NDArray[Any],
    *,
    alternative: str = "two-sided",
) -> McNemar:
    """Exact test of whether two sets of answers to the same documents are equally often right.

    Only documents on which the two disagree count (McNemar 1947, in its exact binomial form).

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
    """Percentile bootstrap interval of each row's mean, each for itself."""
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
    """Bootstrap intervals of S means that hold all at once with the stated confidence.

    The best of many settings looks better than it is. Each half-width is the setting's standard
    error times the `confidence` quantile of the largest deviation, in standard errors, that any of
    the S resampled means has from its own mean (the bootstrap max-t interval), so that picking the
    best of S settings that change nothing shows an effect in 1 - `confidence` of the cases only.
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
        # How often each document is drawn is all that a mean needs to know.
        size = min(_CHUNK, num_resamples - start)
        counts_RN = generator.multinomial(num_documents, shares_N, size=size)
        parts.append(values_SN @ counts_RN.T / num_documents)
    return np.concatenate(parts, axis=1)


def detectable_difference(
    num_documents: int,
    *,
    discordant_share: float,
    significance: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest difference of two accuracies that a paired test on n documents would show.

    Solves Connor's (1987) sample size of McNemar's test for the difference d:
    n d^2 = (z_{1-a/2} sqrt(psi) + z_power sqrt(psi - d^2))^2, with psi the `discordant_share` of
    documents on which the two disagree, which is d at least. Never less than what the exact test
    needs for a p-value of `significance`: so many documents, all in one direction. 1 at most.
    """
    if num_documents < 1 or not 0.0 <= discordant_share <= 1.0:
        raise ValueError(f"impossible: {num_documents} documents, {discordant_share=}")
    normal = NormalDist()
    alpha, beta = normal.inv_cdf(1.0 - significance / 2.0), normal.inv_cdf(power)

    def shows(difference: float) -> bool:
        share = max(discordant_share, difference)
        needed = alpha * math.sqrt(share) + beta * math.sqrt(share - difference**2)
        return math.sqrt(num_documents) * difference >= needed

    # 2 * (1/2)^k <= significance: the fewest discordant documents that can be significant.
    fewest = math.ceil(1.0 - math.log2(significance)) / num_documents
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (low, middle) if shows(middle) else (middle, high)
    return min(1.0, max(high, fewest))


def detectable_mean(
    differences: ArrayLike, *, significance: float = 0.05, power: float = 0.8
) -> float:
    """The smallest mean difference that a paired test would show, by the differences' spread."""
    normal = NormalDist()
    factor = normal.inv_cdf(1.0 - significance / 2.0) + normal.inv_cdf(power)
    return factor * standard_error(differences)


def _paired(first: Any, second: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    first_N, second_N = np.asarray(first), np.asarray(second)
    if first_N.shape != second_N.shape or first_N.ndim != 1 or not len(first_N):
        raise ValueError(
            f"paired values must be equally many: {first_N.shape} and {second_N.shape}"
        )
    return first_N, second_N
