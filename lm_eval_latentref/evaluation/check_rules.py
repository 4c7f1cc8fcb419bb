"""The gate's rules: how far a metric dropped, and when it passes, fails, or cannot be judged.

    drop = accuracy_drop(lost=31, gained=12, num_documents=1000)
    drop.value, drop.upper, drop.p_value        # 0.019, 0.0307, 0.0027
    judge_paired(drop, adjusted_p_value=0.003, max_drop=0.02, significance=0.05)    # Outcome
    judge_scores("mathqa", "acc,none", before, after, tolerance=0.02)                # Result

A drop is positive if the candidate is worse, whether higher or lower values are better. Each bound
of a drop is one-sided at `CONFIDENCE`, so both together are a 90 % interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from lm_eval_latentref.evaluation.results import Score

Verdict = Literal["pass", "fail", "inconclusive"]

MAX_DROP = 0.02
"""The accepted drop of an accuracy by default, absolute."""

SIGNIFICANCE = 0.05

_BETTER = "better than the baseline; --update keeps it"
_ROUNDING = 1e-12

CONFIDENCE = 0.95
_CONTINUITY = 0.5  # of a document: without it the score test passes up to 6 % of true drops


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The mean of first minus second over the same documents, with its bounds."""

    value: float
    lower: float
    upper: float
    p_value: float
    """One-sided: the probability of a drop at least this large if the true drop is 0."""
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
    # If all differences are equal, there is no spread: then this is a sign test.
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
    """The score statistic (N,): by how many standard errors the observed drop exceeds `drop`.

    The standard error is computed from the likeliest shares whose difference is `drop`; the
    continuity correction adds half a document to the observed drop.

    Args:
        lost: counts (N,) of documents that only the first run has right.
        gained: counts (N,) of documents that only the second run has right.
    """
    lost_N, gained_N = np.asarray(lost, dtype=float), np.asarray(gained, dtype=float)
    # Let q be the share of gained documents and q + drop the share of lost documents. The likeliest
    # q is the positive root of 2 n q^2 + linear q + constant = 0.
    linear_N = (2 * num_documents - lost_N + gained_N) * drop - lost_N - gained_N
    constant_N = -gained_N * drop * (1.0 - drop)
    root_N = np.sqrt(np.maximum(linear_N**2 - 8.0 * num_documents * constant_N, 0.0))
    share_N = (root_N - linear_N) / (4.0 * num_documents)
    variance_N = num_documents * np.maximum(2.0 * share_N + drop * (1.0 - drop), 1e-300)
    seen_N = lost_N - gained_N + _CONTINUITY
    return np.asarray((seen_N - num_documents * drop) / np.sqrt(variance_N))


def _upper_bound(lost: int, gained: int, num_documents: int) -> float:
    """The upper bound of the drop, one-sided at `CONFIDENCE`."""
    threshold = stats.norm.ppf(1.0 - CONFIDENCE)

    def above(drop: float) -> float:
        return float(score_statistic(lost, gained, num_documents, drop) - threshold)

    low, high = (lost - gained) / num_documents, 1.0 - 1e-9
    if low >= high or above(high) >= 0.0:
        return 1.0
    return float(optimize.brentq(above, low, high, xtol=1e-9))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdict of a rule."""

    verdict: Verdict
    reason: str = ""
    """One phrase; empty if there is nothing to explain."""
    detectable: int | None = None
    """If inconclusive: how many documents would give a verdict if all shares stayed the same."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A document whose value changed, with the answer of each run."""

    document: int
    """lm-eval's `doc_id`."""
    baseline: float
    """The metric's value in the first run."""
    candidate: float
    gold: str
    baseline_answer: str
    candidate_answer: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """The gate's verdict on one metric, with its numbers."""

    task: str
    metric: str
    baseline: float | None = None
    candidate: float | None = None
    difference: float | None = None
    """Candidate minus baseline."""
    interval: tuple[float, float] | None = None
    """Bounds of the difference, each one-sided at 95 %."""
    p_value: float | None = None
    """The one-sided p-value of a change for the worse; None if documents were not paired."""
    adjusted_p_value: float | None = None
    """The p-value, adjusted by Holm's method over the paired metrics."""
    num_documents: int | None = None
    detectable: int | None = None
    """If inconclusive: how many documents would give a verdict."""
    verdict: Verdict
    reason: str = ""
    flips: tuple[Flip, ...] = ()
    """The documents whose value changed most, as many as `show_flips`."""


def failed(task: str, metric: str, reason: str, baseline: float | None = None) -> Result:
    """The result of a metric that cannot be compared, which counts as a failure."""
    return Result(task=task, metric=metric, baseline=baseline, verdict="fail", reason=reason)


def judge_paired(
    drop: Drop,
    *,
    adjusted_p_value: float,
    max_drop: float,
    significance: float,
    rises: bool = False,
) -> Outcome:
    """Judges a drop on the same documents.

    The metric fails if the drop is significant and larger than `max_drop`. It passes if no document
    changed or if the drop's upper bound is at most `max_drop`. With `max_drop` 0, every drop passes
    that is not significant.

    Args:
        adjusted_p_value: the drop's p-value, adjusted for the number of judged metrics.
        rises: whether messages say "rise" for "drop", because lower values are better.
    """
    if adjusted_p_value <= significance and drop.value > max_drop:
        reason = f"{'rose' if rises else 'dropped'} by {drop.value:.4f}, more than {max_drop:g}"
        reason += f" (p = {adjusted_p_value:.2g} by Holm)"
        return Outcome(verdict="fail", reason=reason)
    if max_drop == 0.0 or not drop.num_changed or drop.upper <= max_drop:
        reason = "" if drop.num_changed else "no document changed"
        if drop.value < -max_drop and drop.upper < 0.0:
            reason = _BETTER
        return Outcome(verdict="pass", reason=reason)
    # Holm's adjustment leaves this share of the significance to this metric.
    share = drop.p_value / adjusted_p_value if adjusted_p_value else 1.0
    needed = documents_to_settle(drop, max_drop=max_drop, significance=significance * share)
    reason = f"a {'rise' if rises else 'drop'} of up to {drop.upper:.4f} is possible, "
    reason += f"{max_drop:g} is accepted; "
    reason += (
        f"about {needed} documents would settle it" if needed else "more documents do not settle it"
    )
    return Outcome(verdict="inconclusive", reason=reason, detectable=needed)


def judge_scores(
    task: str, metric: str, baseline: Score, candidate: Score, *, tolerance: float
) -> Result:
    """Judges two values without a test: the candidate fails if it is worse by over `tolerance`."""
    difference = candidate.value - baseline.value
    rises = is_lower_better(candidate)
    outcome = _within(difference if rises else -difference, tolerance, rises=rises)
    half = math.nan
    if baseline.stderr is not None and candidate.stderr is not None:
        half = stats.norm.ppf(CONFIDENCE) * math.hypot(baseline.stderr, candidate.stderr)
    return Result(
        task=task,
        metric=metric,
        baseline=baseline.value,
        candidate=candidate.value,
        difference=difference,
        interval=None if math.isnan(half) else (difference - half, difference + half),
        verdict=outcome.verdict,
        reason=outcome.reason,
    )


def is_lower_better(score: Score) -> bool:
    """Whether the task says that lower values are better; the default is higher."""
    return score.higher_is_better is False


def _within(drop: float, tolerance: float, *, rises: bool) -> Outcome:
    if not drop <= tolerance + _ROUNDING:  # not `>`: a nan must not pass
        reason = f"{'rose' if rises else 'dropped'} by {drop:.4g}, more than {tolerance:.4g}"
        return Outcome(verdict="fail", reason=reason)
    return Outcome(verdict="pass", reason=_BETTER if -drop > tolerance + _ROUNDING else "")


def documents_to_settle(drop: Drop, *, max_drop: float, significance: float) -> int | None:
    """The number of documents that would give a verdict if all shares stayed the same.

    The distance of the bounds from the drop shrinks with the square root of the number of
    documents. None if the drop is exactly `max_drop`, because no number would give a verdict.
    """
    if drop.value == max_drop:
        return None
    if drop.value < max_drop:
        ratio = (drop.upper - drop.value) / (max_drop - drop.value)
    else:
        stricter = stats.norm.ppf(1.0 - significance) / stats.norm.ppf(CONFIDENCE)
        ratio = stricter * (drop.value - drop.lower) / drop.value
    return max(drop.num_documents + 1, math.ceil(drop.num_documents * ratio**2))
