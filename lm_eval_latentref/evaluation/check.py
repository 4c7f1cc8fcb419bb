"""A gate for CI: pass, fail, or inconclusive if the run was too short to rule out a drop.

    report = check("results/new", baseline="results/old", max_drop=0.02)
    report.verdict                          # pass, fail or inconclusive
    check("results/new", baseline="baseline.yaml")
    check("results/new", golden="golden.json")

A folder with samples is compared document by document, a YAML file within its tolerance, a golden
file up to rounding. `check_rules` decides when a metric fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.baseline import (
    DEFAULT_RTOL,
    Baseline,
    ExpectedMetric,
    read_baseline,
)
from lm_eval_latentref.evaluation.check_rules import (
    MAX_DROP,
    SIGNIFICANCE,
    Drop,
    Flip,
    Result,
    Verdict,
    accuracy_drop,
    failed,
    is_lower_better,
    judge_paired,
    judge_scores,
    mean_drop,
)
from lm_eval_latentref.evaluation.golden import Golden, answers, compare_golden, read_golden
from lm_eval_latentref.evaluation.results import Run, Score, Task, read_results
from lm_eval_latentref.evaluation.samples import answer_text, gold_text, read_at
from lm_eval_latentref.evaluation.statistics import holm

YAML_SUFFIXES = (".yaml", ".yml")

STATUS: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 2}
"""Exit status of each verdict; the status of a mistake is 3."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The gate's results for a candidate."""

    candidate: str
    baseline: str
    """The names of the baseline and golden file, as given."""
    results: tuple[Result, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict of the worst result; inconclusive is worse than pass."""
        verdicts = {result.verdict for result in self.results}
        if "fail" in verdicts:
            return "fail"
        return "inconclusive" if "inconclusive" in verdicts else "pass"


def check(
    candidate: str | Path,
    *,
    baseline: str | Path | None = None,
    max_drop: float | None = None,
    significance: float = SIGNIFICANCE,
    golden: str | Path | None = None,
    show_flips: int = 0,
) -> Report:
    """Judges a folder or results file of lm-eval against a baseline, a golden file or both.

    Args:
        candidate: the folder or results file.
        baseline: a folder or results file of lm-eval, or a YAML file of accuracies.
        max_drop: the accepted drop, absolute. None for the tolerance of the YAML file, or for 0.02
            if documents are paired.
        significance: the level of the paired tests, over all metrics together.
        golden: a file that `golden.write_golden` wrote.
        show_flips: the number of changed documents to list for each metric.

    Raises:
        LatentRefError: there is nothing to compare with, an option is out of range, or a file
            cannot be read.
    """
    if max_drop is not None and not 0.0 <= max_drop < math.inf:
        raise LatentRefError(f"max_drop={max_drop}: give a number of at least 0, such as 0.02")
    if not 0.0 < significance < 1.0:
        raise LatentRefError(f"significance={significance}: give a level in (0, 1), such as 0.05")
    if baseline is None and golden is None:
        raise LatentRefError("nothing to compare with; give a baseline, a golden file or both")
    measured = read_measured(candidate)
    results: list[Result] = []
    if baseline is not None and is_yaml(baseline):
        results += judge_by_file(measured, read_baseline(Path(baseline)), max_drop)
    elif baseline is not None:
        results += judge_runs(
            measured,
            read_measured(baseline),
            max_drop=max_drop,
            significance=significance,
            show_flips=show_flips,
        )
    if golden is not None:
        results += judge_by_golden(measured, read_golden(Path(golden)))
    if not results:
        raise LatentRefError(
            f"{baseline or golden} names no metric of a task, so there is nothing to compare; give "
            "results of at least one task"
        )
    against = ", ".join(str(name) for name in (baseline, golden) if name is not None)
    return Report(candidate=str(candidate), baseline=against, results=tuple(results))


def is_yaml(path: str | Path) -> bool:
    """Whether `path` is a baseline file by its suffix; otherwise it is a folder or results file."""
    return Path(path).suffix in YAML_SUFFIXES


def judge_by_file(
    candidate: Measured, baseline: Baseline, max_drop: float | None = None
) -> Iterator[Result]:
    """Judges each metric that a baseline file names by the file's tolerance."""
    for expected in baseline.metrics:
        if reason := difference_from_file(candidate, expected, baseline):
            yield failed(expected.task, expected.metric, reason, expected.value)
            continue
        yield judge_scores(
            expected.task,
            expected.metric,
            Score(value=expected.value, stderr=expected.stderr, higher_is_better=None),
            candidate.tasks[expected.task].scores[expected.metric],
            tolerance=baseline.tolerance(expected, max_drop),
        )


def difference_from_file(
    candidate: Measured, expected: ExpectedMetric, baseline: Baseline
) -> str | None:
    """How the candidate's task, shots or documents differ from the file's; None if they agree."""
    if (task := candidate.tasks.get(expected.task)) is None:
        return "the candidate has no such task"
    shots = baseline.num_fewshot
    if None not in (shots, task.num_fewshot) and shots != task.num_fewshot:
        return f"num_fewshot: {task.num_fewshot}, but {shots} in the baseline"
    if baseline.names_limit and (reason := _other_limit(candidate, task, baseline.limit)):
        return reason
    return None if expected.metric in task.scores else "the candidate has no such metric"


def _other_limit(candidate: Measured, task: Task, limit: float | None) -> str | None:
    numbers: tuple[float | None, float | None] = task.num_documents, _num_expected(task, limit)
    if None in numbers:  # a group, or a release of lm-eval that does not record the numbers
        numbers = candidate.runs[task.name].limit, limit
    given, wanted = numbers
    if given == wanted:
        return None
    return f"documents (--limit): {given}, but {wanted} in the baseline"


def judge_by_golden(candidate: Measured, golden: Golden) -> Iterator[Result]:
    """One result for each task of the golden file."""
    files = {
        name: candidate.tasks[name].samples_file for name in golden.tasks if name in candidate.tasks
    }
    seen = answers({name: file for name, file in files.items() if file is not None})
    reasons = compare_golden(golden, seen)
    for task in golden.tasks:
        reason = reasons.get(task)
        if reason and task in candidate.runs:
            reason += _version_changes(golden.made_with, candidate.runs[task].versions)
        yield Result(
            task=task,
            metric="golden",
            num_documents=len(golden.tasks[task]),
            verdict="fail" if reason else "pass",
            reason=reason or "",
        )


def _num_expected(task: Task, limit: float | None) -> int | None:
    """The number of documents that lm-eval evaluates with `--limit`; below 1, it is a fraction."""
    if task.num_available is None:
        return None
    if limit is None:
        return task.num_available
    number = math.ceil(task.num_available * limit) if limit < 1.0 else int(limit)
    return min(number, task.num_available)


def _version_changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [
        f"{name} {then.get(name, 'unknown')}, now {now.get(name, 'unknown')}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    return f"; the file was made with {', '.join(changed)}" if changed else ""


@dataclass(frozen=True)
class Measured:
    """The newest run of each task in a folder."""

    name: str
    tasks: Mapping[str, Task]
    """Tasks and groups by name."""
    runs: Mapping[str, Run]
    """The run of each task and group."""


@dataclass(frozen=True)
class _Pair:
    """A metric of a task whose documents both runs answered."""

    first: Task
    second: Task
    metric: str
    drop: Drop


def read_measured(path: str | Path) -> Measured:
    """The newest run of each task in `path`.

    Raises LatentRefError if there are no results or a file cannot be read.
    """
    results = read_results([path])
    if results.problems:
        raise LatentRefError(str(results.problems[0]))
    tasks: dict[str, Task] = {}
    runs: dict[str, Run] = {}
    for run in sorted(results.runs, key=lambda run: (run.date or 0.0, run.file.name)):
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
    """Judges every metric of the baseline's tasks; groups, which are averages, are left out."""
    compared = [
        _compared(task, candidate.tasks.get(name), metric, max_drop)
        for name, task in baseline.tasks.items()
        if name not in baseline.runs[name].groups
        for metric in task.scores
    ]
    adjusted = iter(holm([pair.drop.p_value for pair in compared if isinstance(pair, _Pair)]))
    limit = MAX_DROP if max_drop is None else max_drop
    return [
        pair
        if isinstance(pair, Result)
        else _judged(pair, next(adjusted), limit, significance, show_flips)
        for pair in compared
    ]


def setup_difference(first: Task, second: Task) -> str | None:
    """How the second run's version, shots or documents differ; None if the runs are comparable."""
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
        if not same_ids or not ours.same_documents(theirs):
            return "its documents are not those of the baseline"
    return None


def paired_drop(first: Task, second: Task, metric: str) -> Drop | None:
    """The drop over documents; None unless the metric has a value from 0 to 1 for each document."""
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
    if reason := setup_difference(first, second):
        return failed(first.name, metric, reason, score.value)
    if metric not in second.scores:
        return failed(first.name, metric, "the candidate has no such metric", score.value)
    if first.columns and not second.columns:
        raise LatentRefError(
            f"{first.name}: the candidate has no samples to pair with the baseline's; evaluate the "
            "candidate with --log_samples"
        )
    if (drop := paired_drop(first, second, metric)) is not None:
        return _Pair(first, second, metric, drop)
    tolerance = abs(score.value) * DEFAULT_RTOL if max_drop is None else max_drop
    return judge_scores(first.name, metric, score, second.scores[metric], tolerance=tolerance)


def _judged(
    pair: _Pair, p_value: float, max_drop: float, significance: float, show_flips: int
) -> Result:
    first, second, drop = pair.first, pair.second, pair.drop
    rises = is_lower_better(first.scores[pair.metric])
    outcome = judge_paired(
        drop, adjusted_p_value=p_value, max_drop=max_drop, significance=significance, rises=rises
    )
    difference, low, high = 0.0 - drop.value, -drop.upper, -drop.lower  # 0.0, not -0.0
    if rises:
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


def read_flips(first: Task, second: Task, metric: str, *, num: int) -> tuple[Flip, ...]:
    """The first `num` changed documents, from the largest loss to the largest gain.

    Both tasks must have samples of the same documents.
    """
    name, _, filter_name = metric.partition(",")
    columns = first.columns[filter_name], second.columns[filter_name]
    values_2N = np.stack([column.values[name] for column in columns])
    changes_N = values_2N[1] - values_2N[0]
    order_N = np.argsort(changes_N, kind="stable")
    places = [int(place) for place in order_N if changes_N[place]][:num]
    samples = [
        read_at(task.samples_file, [int(column.offsets[place]) for place in places])
        for task, column in zip((first, second), columns, strict=True)
        if task.samples_file is not None
    ]
    return tuple(
        Flip(
            document=int(columns[0].doc_ids[place]),
            baseline=float(values_2N[0, place]),
            candidate=float(values_2N[1, place]),
            gold=gold_text(before),
            baseline_answer=answer_text(before),
            candidate_answer=answer_text(after),
        )
        for place, before, after in zip(places, *samples, strict=True)
    )
