"""Two runs on the same documents: by how much they differ, and whether that is more than noise.

    for one in compare(read_answers("results/plain"), read_answers("results/refined"), seed=0):
        print(one.task, one.difference, one.test.p_value)

Paired throughout: documents are aligned by task and number and must be the same ones. Deliberately
knows no model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.answers import Answer, Answers
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    McNemar,
    detectable_difference,
    mcnemar,
    paired_interval,
    standard_error,
)

logger = logging.getLogger(__name__)

ALL = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The second run against the first on the documents of one task."""

    task: str
    metric: str
    num_documents: int
    first: float
    first_error: float
    second: float
    second_error: float
    difference: Interval
    """Of the metric's mean, second minus first: paired bootstrap, 95 %."""
    margin_difference: Interval | None
    """Of the mean margin of the gold answer in nats; None where candidates were not scored."""
    test: McNemar | None
    """Exact McNemar; None for a metric that is not 0 or 1."""
    smallest: float | None
    """The smallest difference that so many documents would show (`detectable_difference`)."""


def compare(first: Answers, second: Answers, *, seed: int) -> list[Comparison]:
    """One comparison for each task that both runs have; one of all documents if there are several.

    Documents that only one run has are left out, with a warning.

    Raises:
        LatentRefError: no task in common, or a document of the same number that is another one.
    """
    tasks = [task for task in first.tasks if task in second.tasks]
    if not tasks:
        raise LatentRefError(
            f"no task in common: {first.name} has {', '.join(first.tasks)}; {second.name} has "
            f"{', '.join(second.tasks)}; compare runs of the same tasks"
        )
    pairs = {task: _align(task, first, second) for task in tasks}
    found = [_compared(task, first.metrics[task], pairs[task], seed) for task in tasks]
    if len(tasks) > 1:
        everything = [pair for task in tasks for pair in pairs[task]]
        metrics = ", ".join(dict.fromkeys(first.metrics[task] for task in tasks))
        found.append(_compared(ALL, metrics, everything, seed))
    return found


def as_text(comparisons: Sequence[Comparison]) -> str:
    """A block of lines for each comparison."""
    return "\n\n".join("\n".join(_block(one)) for one in comparisons)


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """All numbers, as JSON values."""
    return [dataclasses.asdict(one) for one in comparisons]


def _align(task: str, first: Answers, second: Answers) -> list[tuple[Answer, Answer]]:
    judged_by = first.metrics[task], second.metrics[task]
    if judged_by[0] != judged_by[1]:
        raise LatentRefError(
            f"{task} is judged by {judged_by[0]} in {first.name}, by {judged_by[1]} in "
            f"{second.name}; name one that both have as --metric"
        )
    ours, theirs = first.tasks[task], second.tasks[task]
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise LatentRefError(f"{task}: {first.name} and {second.name} have no document in common")
    if left_out := len(ours.keys() ^ theirs.keys()):
        logger.warning("%s: %d documents that only one run has are left out", task, left_out)
    for doc_id in common:
        hashes = ours[doc_id].doc_hash, theirs[doc_id].doc_hash
        if None not in hashes and hashes[0] != hashes[1]:
            raise LatentRefError(
                f"{task} document {doc_id} is not the same in {first.name} and {second.name}; "
                "compare runs on the same data"
            )
    return [(ours[doc_id], theirs[doc_id]) for doc_id in common]


def _compared(
    task: str, metric: str, pairs: Sequence[tuple[Answer, Answer]], seed: int
) -> Comparison:
    first, second = ([pair[side].value for pair in pairs] for side in (0, 1))
    is_accuracy = {*first, *second} <= {0.0, 1.0}
    share = sum(a != b for a, b in zip(first, second, strict=True)) / len(pairs)
    return Comparison(
        task=task,
        metric=metric,
        num_documents=len(pairs),
        first=sum(first) / len(pairs),
        first_error=standard_error(first),
        second=sum(second) / len(pairs),
        second_error=standard_error(second),
        difference=paired_interval(second, first, seed=seed),
        margin_difference=_margin_difference(pairs, seed),
        test=mcnemar([bool(one) for one in first], [bool(one) for one in second])
        if is_accuracy
        else None,
        smallest=detectable_difference(len(pairs), discordant_share=share) if is_accuracy else None,
    )


def _margin_difference(pairs: Sequence[tuple[Answer, Answer]], seed: int) -> Interval | None:
    margins = [
        (first.margin, second.margin)
        for first, second in pairs
        if first.margin is not None and second.margin is not None
    ]
    if len(margins) < len(pairs):
        return None
    first_margins, second_margins = zip(*margins, strict=True)
    return paired_interval(second_margins, first_margins, seed=seed)


def _block(one: Comparison) -> list[str]:
    difference = one.difference
    lines = [
        f"{one.task}: {one.num_documents} documents, {one.metric}",
        f"  first  {one.first:.4f} +- {one.first_error:.4f}",
        f"  second {one.second:.4f} +- {one.second_error:.4f}",
        f"  second - first {_interval(difference)} (95 % paired bootstrap)",
    ]
    if one.margin_difference is not None:
        lines.append(f"  margin of the gold answer {_interval(one.margin_difference)} nats")
    if one.test is not None:
        lines.append(
            f"  only the first right: {one.test.only_first}, only the second: "
            f"{one.test.only_second}, exact McNemar p = {one.test.p_value:.4f}"
        )
        lines.append(f"  smallest difference that would show (80 % power): {one.smallest:.4f}")
    return lines


def _interval(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
