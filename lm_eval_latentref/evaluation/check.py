"""A gate for CI: is a candidate worse than its baseline, or could this run not have shown it?

    report = check("results/new", baseline="results/old", max_drop=0.02)
    report.verdict                          # pass, fail or inconclusive
    check("results/new", baseline="baseline.yaml")
    check("results/new", golden="golden.json")

A folder with samples is compared document by document, a YAML file by its tolerance, a golden file
to the rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.baseline import Baseline, ExpectedMetric, read_baseline
from lm_eval_latentref.evaluation.check_rules import (
    SIGNIFICANCE,
    Result,
    Verdict,
    failed,
    judge_scores,
)
from lm_eval_latentref.evaluation.check_runs import Measured, judge_runs, read_measured
from lm_eval_latentref.evaluation.golden import Golden, answers, compare_golden, read_golden
from lm_eval_latentref.evaluation.results import Score, Task

YAML_SUFFIXES = (".yaml", ".yml")

STATUS: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 2}
"""Exit statuses; 3 is a mistake."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the gate says about a candidate."""

    candidate: str
    baseline: str
    """Names of what it was compared with."""
    results: tuple[Result, ...]

    @property
    def verdict(self) -> Verdict:
        """That of the worst result; inconclusive is worse than pass."""
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
    """Judges a folder or results file of lm-eval by a baseline, a golden file or both.

    Args:
        baseline: a folder or results file of lm-eval, or a YAML file of accuracies.
        max_drop: the absolute drop that is accepted. None for what the YAML file says, and for
            0.02 where documents are paired.
        significance: of the test by which a paired metric fails, over all metrics together.
        golden: a file that `golden.write_golden` made.
        show_flips: how many documents that changed each result lists.

    Raises:
        LatentRefError: nothing to compare with, an impossible setting, or a file that cannot be
            read.
    """
    if max_drop is not None and not 0.0 <= max_drop < math.inf:
        raise LatentRefError(f"max_drop={max_drop}: give a number of at least 0, such as 0.02")
    if not 0.0 < significance < 1.0:
        raise LatentRefError(f"significance={significance}: give one between 0 and 1, such as 0.05")
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
        raise LatentRefError(f"{baseline or golden} names no metric of a task; nothing is compared")
    against = ", ".join(str(name) for name in (baseline, golden) if name is not None)
    return Report(candidate=str(candidate), baseline=against, results=tuple(results))


def is_yaml(path: str | Path) -> bool:
    return Path(path).suffix in YAML_SUFFIXES


def judge_by_file(
    candidate: Measured, baseline: Baseline, max_drop: float | None = None
) -> Iterator[Result]:
    """Judges the metrics that a baseline file names, each by its tolerance."""
    for expected in baseline.metrics:
        if reason := other_than_file(candidate, expected, baseline):
            yield failed(expected.task, expected.metric, reason, expected.value)
            continue
        yield judge_scores(
            expected.task,
            expected.metric,
            Score(value=expected.value, stderr=expected.stderr, higher_is_better=None),
            candidate.tasks[expected.task].scores[expected.metric],
            tolerance=baseline.tolerance(expected, max_drop),
        )


def other_than_file(
    candidate: Measured, expected: ExpectedMetric, baseline: Baseline
) -> str | None:
    """What the candidate lacks or did otherwise than the file says, in one phrase, or None."""
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
    if None in numbers:  # a group, or a release that records none
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
            reason += _made_otherwise(golden.made_with, candidate.runs[task].versions)
        yield Result(
            task=task,
            metric="golden",
            num_documents=len(golden.tasks[task]),
            verdict="fail" if reason else "pass",
            reason=reason or "",
        )


def _num_expected(task: Task, limit: float | None) -> int | None:
    """Documents that lm-eval takes of a task under `--limit`; below 1 it is a share."""
    if task.num_available is None:
        return None
    if limit is None:
        return task.num_available
    number = math.ceil(task.num_available * limit) if limit < 1.0 else int(limit)
    return min(number, task.num_available)


def _made_otherwise(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [
        f"{name} {then.get(name, 'unknown')}, now {now.get(name, 'unknown')}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    return f"; the file was made with {', '.join(changed)}" if changed else ""
