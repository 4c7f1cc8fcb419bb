"""Tests of several runs on the same documents: paired differences, Holm's correction, tiers.

    first, second = [values_a_N], [values_b_N]          # one array for each task
    paired_p(first, second)                             # exact McNemar for 0/1 values
    paired_difference(first, second, seed=0)            # Interval of the mean difference
    holm([0.01, 0.04, 0.03])                            # [0.03, 0.06, 0.06]
    tiers([[False, True], [False, False]])              # [1, 2]

What is compared is the mean over tasks of each task's mean. Knows no file format and no model.

Array suffixes: N documents of a task, R resamples, K rows, U distinct values.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_latentref.evaluation.statistics import NUM_RESAMPLES, Interval, standard_error

Floats = NDArray[np.float64]

_MOST_VALUES = 64
_MOST_OUTCOMES = 100_000


def mean_of_repeats(values: ArrayLike) -> Floats:
    """One number a document from (repeats or seeds, N) or (N,): the document is what is drawn."""
    array = np.asarray(values, dtype=float)
    return array.mean(axis=0) if array.ndim == 2 else array


def paired_p(first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> float:
    """Two-sided p-value of a difference between the means over tasks of two rows.

    Where all values are 0 or 1, each document on which the two disagree may as well have gone the
    other way: for one task, and for several of the same size, this is the exact McNemar test; for
    several of other sizes, documents count by their weight in the mean (exact up to 100,000
    outcomes, then by the normal distribution with the same variance). Otherwise the normal
    distribution with the differences' standard error, which is that of the bootstrap.

    Args:
        first: for each task the values (N,), or (repeats, N), of the same documents as `second`.
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

    Documents are drawn within their task; arguments as `paired_p` takes them.
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
    """Holm's (1979) adjusted p-values, in the order given: below 0.05 where significant."""
    p_K = np.asarray(p_values, dtype=float)
    order_K = np.argsort(p_K, kind="stable")
    factors_K = np.arange(len(p_K), 0, -1)
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order_K] = np.minimum(1.0, np.maximum.accumulate(p_K[order_K] * factors_K))
    return [float(p) for p in adjusted_K]


def tiers(is_worse: Sequence[Sequence[bool]]) -> list[int]:
    """Ranks from 1, shared by rows that do not differ significantly from the best of their tier.

    Args:
        is_worse: (K, K), rows from best to worst: whether the second is significantly worse than
            the first.
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
        raise ValueError(f"paired values must be equally many: {shapes[0]} and {shapes[1]}")
    return [second_N - first_N for first_N, second_N in zip(firsts, seconds, strict=True)]


def _normal_p(z: float) -> float:
    """Two-sided."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def _flipping_p(differences: Sequence[Floats], weights: Sequence[float]) -> float:
    """Share of all ways to flip the signs of non-zero differences that lead at least as far."""
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
    """Means (R,) of resamples of the documents, with replacement."""
    values_U, counts_U = np.unique(differences_N, return_counts=True)
    num = len(differences_N)
    if len(values_U) > _MOST_VALUES:
        drawn_R: Floats = _counts(num, seed, num_resamples) @ differences_N / num
        return drawn_R
    # How often each value is drawn is all that a mean needs to know.
    counts_RU = np.random.default_rng(seed).multinomial(num, counts_U / num, size=num_resamples)
    means_R: Floats = counts_RU @ values_U / num
    return means_R


@functools.lru_cache(maxsize=4)
def _counts(num: int, seed: tuple[int, int], num_resamples: int) -> NDArray[np.float32]:
    """How often each of `num` documents is drawn in each resample: (R, N)."""
    shares_N = np.full(num, 1.0 / num)
    counts_RN = np.random.default_rng(seed).multinomial(num, shares_N, size=num_resamples)
    return counts_RN.astype(np.float32)
