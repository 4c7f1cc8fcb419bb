"""A candidate against a folder of earlier results: paired on the same documents where it can be.

judge_runs(read_measured("results/new"), read_measured("results/old"), significance=0.05)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.baseline import DEFAULT_RTOL
from lm_eval_latentref.evaluation.check_rules import (
    MAX_DROP,
    Result,
    failed,
    is_lower_better,
    judge_paired,
    judge_scores,
)
from lm_eval_latentref.evaluation.drop import Drop, accuracy_drop, mean_drop
from lm_eval_latentref.evaluation.flips import read_flips
from lm_eval_latentref.evaluation.pairing import holm
from lm_eval_latentref.evaluation.results import Run, Task, read_results


@dataclass(frozen=True)
class Measured:
    """The newest run of each task in a folder."""

    name: str
    tasks: Mapping[str, Task]
    """Groups included."""
    runs: Mapping[str, Run]
    """Of each task."""


@dataclass(frozen=True)
class _Pair:
    """A metric of a task whose documents both runs answered."""

    first: Task
    second: Task
    metric: str
    drop: Drop


def read_measured(path: str | Path) -> Measured:
    """The newest run of each task in `path`.

    Raises LatentRefError where a file there cannot be read, or nothing is there.
    """
    found = read_results([path])
    if found.problems:
        raise LatentRefError(str(found.problems[0]))
    tasks: dict[str, Task] = {}
    runs: dict[str, Run] = {}
    for run in sorted(found.runs, key=lambda run: (run.date or 0.0, run.file.name)):
        for name, task in (run.tasks | run.groups).items():
            tasks[name], runs[name] = task, run
    if not tasks:
        raise LatentRefError(f"{path} holds no results of lm-eval; give what --output_path wrote")
    return Measured(str(path), tasks, runs)


def judge_runs(
    candidate: Measured,
    baseline: Measured,
    *,
    max_drop: float | None = None,
    significance: float,
    show_flips: int = 0,
) -> list[Result]:
    """Judges every metric of the baseline's tasks; groups are averages of tasks and left out."""
    compared = [
        _compared(task, candidate.tasks.get(name), metric, max_drop)
        for name, task in baseline.tasks.items()
        if name not in baseline.runs[name].groups
        for metric in task.scores
    ]
    adjusted = iter(holm([one.drop.p_value for one in compared if isinstance(one, _Pair)]))
    limit = MAX_DROP if max_drop is None else max_drop
    return [
        one
        if isinstance(one, Result)
        else _judged(one, next(adjusted), limit, significance, show_flips)
        for one in compared
    ]


def other_work(first: Task, second: Task) -> str | None:
    """What the second run did otherwise than the first, in one phrase; None for the same work."""
    fields = {
        "task version": (first.version, second.version),
        "num_fewshot": (first.num_fewshot, second.num_fewshot),
        "documents (--limit)": (first.num_documents, second.num_documents),
    }
    for name, (expected, given) in fields.items():
        if None not in (expected, given) and expected != given:
            return f"{name}: {given}, but {expected} in the baseline"
    for name in first.columns.keys() & second.columns.keys():
        ours, theirs = first.columns[name], second.columns[name]
        same_ids = np.array_equal(ours.doc_ids, theirs.doc_ids)
        if not same_ids or not np.array_equal(ours.hashes, theirs.hashes):
            return "its documents are not those of the baseline"
    return None


def paired_drop(first: Task, second: Task, metric: str) -> Drop | None:
    """The drop on the documents of both; None where the metric has no value of 0 to 1 for each."""
    if not (first.paired(metric) and second.paired(metric)):
        return None
    name, _, filter_name = metric.partition(",")
    values = [task.columns[filter_name].values[name] for task in (first, second)]
    if is_lower_better(first.scores[metric]):
        values.reverse()
    before_N, after_N = values
    both_2N = np.stack([before_N, after_N])
    if ((both_2N == 0.0) | (both_2N == 1.0)).all():
        lost, gained = int((before_N > after_N).sum()), int((after_N > before_N).sum())
        return accuracy_drop(lost=lost, gained=gained, num_documents=len(before_N))
    if ((both_2N >= 0.0) & (both_2N <= 1.0)).all():
        return mean_drop(before_N, after_N)
    return None


def _compared(
    first: Task, second: Task | None, metric: str, max_drop: float | None
) -> Result | _Pair:
    score = first.scores[metric]
    if second is None:
        return failed(first.name, metric, "the candidate has no such task", score.value)
    if reason := other_work(first, second):
        return failed(first.name, metric, reason, score.value)
    if metric not in second.scores:
        return failed(first.name, metric, "the candidate has no such metric", score.value)
    if first.columns and not second.columns:
        raise LatentRefError(
            f"{first.name}: the candidate has no samples to pair with the baseline's; evaluate it "
            "with --log_samples"
        )
    if (drop := paired_drop(first, second, metric)) is not None:
        return _Pair(first, second, metric, drop)
    tolerance = abs(score.value) * DEFAULT_RTOL if max_drop is None else max_drop
    return judge_scores(first.name, metric, score, second.scores[metric], tolerance=tolerance)


def _judged(
    pair: _Pair, p_value: float, max_drop: float, significance: float, show_flips: int
) -> Result:
    first, second, drop = pair.first, pair.second, pair.drop
    outcome = judge_paired(
        drop, adjusted_p_value=p_value, max_drop=max_drop, significance=significance
    )
    difference, low, high = -drop.value, -drop.upper, -drop.lower
    if is_lower_better(first.scores[pair.metric]):
        difference, low, high = drop.value, drop.lower, drop.upper
    return Result(
        task=first.name,
        metric=pair.metric,
        baseline=first.scores[pair.metric].value,
        candidate=second.scores[pair.metric].value,
        difference=difference,
        interval=(low, high),
        p_value=drop.p_value,
        adjusted_p_value=p_value,
        num_documents=drop.num_documents,
        detectable=outcome.detectable,
        verdict=outcome.verdict,
        reason=outcome.reason,
        flips=read_flips(first, second, pair.metric, num=show_flips) if show_flips else (),
    )
