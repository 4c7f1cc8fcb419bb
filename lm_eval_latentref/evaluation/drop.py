"""How far a metric dropped between two runs on the same documents, and how far it may have.

    drop = accuracy_drop(lost=31, gained=12, num_documents=1000)
    drop.value, drop.upper, drop.p_value        # 0.019, 0.0307, 0.0027

A drop is positive where the second run is worse. Each bound holds with `CONFIDENCE` by itself, so
the two together are an interval of 90 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
_CONTINUITY = 0.5  # of a document: without it the score test passes up to 6 % of true drops


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The mean of first minus second over the same documents."""

    value: float
    lower: float
    upper: float
    p_value: float
    """One-sided: probability of a drop at least this large where there is none."""
    num_changed: int
    num_documents: int


def accuracy_drop(*, lost: int, gained: int, num_documents: int) -> Drop:
    """The drop of an accuracy, from the documents that only one of the two runs has right.

    The p-value is that of the exact one-sided McNemar test; the bounds are score bounds (Tango
    1998, Statistics in Medicine 17:891) with a continuity correction.

    Args:
        lost: documents that only the first run has right.
        gained: documents that only the second run has right.
    """
    return Drop(
        value=(lost - gained) / num_documents,
        lower=-_upper_bound(gained, lost, num_documents),
        upper=_upper_bound(lost, gained, num_documents),
        p_value=float(stats.binom.sf(lost - 1, lost + gained, 0.5)),
        num_changed=lost + gained,
        num_documents=num_documents,
    )


def mean_drop(first: ArrayLike, second: ArrayLike) -> Drop:
    """The drop of a mean of values between 0 and 1, by Student's t of the differences."""
    differences_N = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    num_documents = len(differences_N)
    value = float(differences_N.mean())
    # Equal differences have no spread: what is left is that all of them have one sign.
    p_value, half = (0.5**num_documents if value > 0.0 else 1.0), 0.0
    if num_documents < 2:
        half = 1.0
    elif error := float(stats.sem(differences_N)):
        p_value = float(stats.t.sf(value / error, num_documents - 1))
        half = float(stats.t.ppf(CONFIDENCE, num_documents - 1)) * error
    return Drop(
        value=value,
        lower=max(-1.0, value - half),
        upper=min(1.0, value + half),
        p_value=p_value,
        num_changed=int(np.count_nonzero(differences_N)),
        num_documents=num_documents,
    )


def score_statistic(
    lost: ArrayLike, gained: ArrayLike, num_documents: int, drop: float
) -> NDArray[np.float64]:
    """Standard errors by which the drop that was seen lies above `drop`, broadcast over counts.

    The standard error is that of the likeliest shares whose difference is `drop`; the correction
    moves the drop that was seen up by half a document.
    """
    lost_N, gained_N = np.asarray(lost, dtype=float), np.asarray(gained, dtype=float)
    # The likeliest share q of gained documents where that of lost ones is q + drop is the
    # positive root of 2 n q^2 + linear q + constant = 0.
    linear_N = (2 * num_documents - lost_N + gained_N) * drop - lost_N - gained_N
    constant_N = -gained_N * drop * (1.0 - drop)
    root_N = np.sqrt(np.maximum(linear_N**2 - 8.0 * num_documents * constant_N, 0.0))
    share_N = (root_N - linear_N) / (4.0 * num_documents)
    variance_N = num_documents * np.maximum(2.0 * share_N + drop * (1.0 - drop), 1e-300)
    seen_N = lost_N - gained_N + _CONTINUITY
    return np.asarray((seen_N - num_documents * drop) / np.sqrt(variance_N))


def _upper_bound(lost: int, gained: int, num_documents: int) -> float:
    """The smallest drop that the test refuses as too large, at one-sided `CONFIDENCE`."""
    threshold = stats.norm.ppf(1.0 - CONFIDENCE)

    def above(drop: float) -> float:
        return float(score_statistic(lost, gained, num_documents, drop) - threshold)

    low, high = (lost - gained) / num_documents, 1.0 - 1e-9
    if low >= high or above(high) >= 0.0:
        return 1.0
    return float(optimize.brentq(above, low, high, xtol=1e-9))
