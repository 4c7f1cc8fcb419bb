"""The gate's rules: when a metric that was measured again passes, fails, or cannot be judged.

    judge_paired(drop, adjusted_p_value=0.003, max_drop=0.02, significance=0.05)    # Outcome
    judge_scores("mathqa", "acc,none", before, after, tolerance=0.02)                # Result

A drop is positive where the candidate is worse, whichever direction the metric has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from lm_eval_latentref.evaluation.drop import CONFIDENCE, Drop
from lm_eval_latentref.evaluation.flips import Flip
from lm_eval_latentref.evaluation.results import Score

Verdict = Literal["pass", "fail", "inconclusive"]

MAX_DROP = 0.02
"""Of an accuracy, absolute, where nothing else is said."""

SIGNIFICANCE = 0.05

_BETTER = "better than the baseline; --update keeps it"
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule says."""

    verdict: Verdict
    reason: str = ""
    """In one phrase; empty where the numbers say everything."""
    detectable: int | None = None
    """Documents that would settle what is inconclusive, at the shares that were seen."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the gate says about one metric."""

    task: str
    metric: str
    baseline: float | None = None
    candidate: float | None = None
    difference: float | None = None
    """Candidate minus baseline."""
    interval: tuple[float, float] | None = None
    """Of the difference; each bound holds with 95 % by itself."""
    p_value: float | None = None
    """One-sided, of a change for the worse; None where documents were not paired."""
    adjusted_p_value: float | None = None
    """By Holm, over the metrics that are paired."""
    num_documents: int | None = None
    detectable: int | None = None
    """Documents that would settle what is inconclusive."""
    verdict: Verdict
    reason: str = ""
    flips: tuple[Flip, ...] = ()
    """The first documents whose value changed, where they were asked for."""


def failed(task: str, metric: str, reason: str, baseline: float | None = None) -> Result:
    """A metric that cannot be compared, which is a failure of the candidate."""
    return Result(task=task, metric=metric, baseline=baseline, verdict="fail", reason=reason)


def judge_paired(
    drop: Drop, *, adjusted_p_value: float, max_drop: float, significance: float
) -> Outcome:
    """Judges a drop on the same documents.

    It fails where it is significant and larger than `max_drop`, and passes where no document
    changed or its upper bound is at most `max_drop`. With `max_drop` 0 all that is not
    significant passes.

    Args:
        adjusted_p_value: the drop's p-value, adjusted for the other metrics that are judged.
    """
    if adjusted_p_value <= significance and drop.value > max_drop:
        reason = f"dropped by {drop.value:.4f}, more than {max_drop:g} (p = {adjusted_p_value:.2g})"
        return Outcome(verdict="fail", reason=reason)
    if max_drop == 0.0 or not drop.num_changed or drop.upper <= max_drop:
        reason = "" if drop.num_changed else "no document changed"
        if drop.value < -max_drop and drop.upper < 0.0:
            reason = _BETTER
        return Outcome(verdict="pass", reason=reason)
    # What Holm's adjustment left of the significance for this metric.
    share = drop.p_value / adjusted_p_value if adjusted_p_value else 1.0
    needed = documents_to_settle(drop, max_drop=max_drop, significance=significance * share)
    reason = f"a drop of up to {drop.upper:.4f} is possible, {max_drop:g} is accepted; "
    reason += f"about {needed} documents would settle it" if needed else "no number settles it"
    return Outcome(verdict="inconclusive", reason=reason, detectable=needed)


def judge_scores(
    task: str, metric: str, baseline: Score, candidate: Score, *, tolerance: float
) -> Result:
    """Judges two values without a test: the candidate is at most `tolerance` worse, or it fails."""
    difference = candidate.value - baseline.value
    outcome = _within(difference if is_lower_better(candidate) else -difference, tolerance)
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
    """By what the task says; where it says nothing, more is better."""
    return score.higher_is_better is False


def _within(drop: float, tolerance: float) -> Outcome:
    if not drop <= tolerance + _ROUNDING:  # not `>`: a nan must not pass
        reason = f"dropped by {drop:.4g}, more than {tolerance:.4g}"
        return Outcome(verdict="fail", reason=reason)
    return Outcome(verdict="pass", reason=_BETTER if -drop > tolerance + _ROUNDING else "")


def documents_to_settle(drop: Drop, *, max_drop: float, significance: float) -> int | None:
    """How many documents would give a verdict if all shares stayed as they are.

    Both bounds come closer with the square root of the number of documents. None where the drop
    is `max_drop` itself: no number of documents would do.
    """
    if drop.value == max_drop:
        return None
    if drop.value < max_drop:
        ratio = (drop.upper - drop.value) / (max_drop - drop.value)
    else:
        stricter = stats.norm.ppf(1.0 - significance) / stats.norm.ppf(CONFIDENCE)
        ratio = stricter * (drop.value - drop.lower) / drop.value
    return max(drop.num_documents + 1, math.ceil(drop.num_documents * ratio**2))
