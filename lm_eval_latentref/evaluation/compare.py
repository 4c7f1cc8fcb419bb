"""Compares two runs on the same documents: their difference, its interval and paired tests.

    first = read_answers("results/plain")                   # folder of `lm_eval --log_samples`
    second = read_answers("sweeps/mathqa/sweep.json::both")  # a row's best setting of a sweep
    for comparison in compare(first, second, seed=0):
        print(comparison.task, comparison.difference, comparison.test.p_value)

Documents are aligned by task and number; it is an error if they are not the same.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_json_object, reading
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import samples
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    McNemar,
    detectable_difference,
    mcnemar,
    paired_interval,
    standard_error,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The answer to one document."""

    value: float
    """The metric's value; for an accuracy, 1 if right and 0 if wrong."""
    margin: float | None
    """Log-likelihood of the gold candidate minus the best other, in nats; None without
    candidates."""
    doc_hash: str | None
    """lm-eval's hash of the document; None if it was not recorded."""
    choice: int | None = None
    """Index of the likeliest candidate, the first of equals; None if it is not known."""
    tied: bool | None = None
    """Whether another candidate has exactly the same log-likelihood; None if it is not known."""


@dataclass(frozen=True)
class Answers:
    """All answers of one run."""

    name: str
    tasks: dict[str, dict[int, Answer]] = field(default_factory=dict)
    """By task (with its filter, if it has one) and document."""
    metrics: dict[str, str] = field(default_factory=dict)
    """The metric of each task."""


def read_answers(name: str, *, metric: str | None = None) -> Answers:
    """The answers in a samples file, in a folder of them (the newest of each task), or in a sweep.

    Args:
        name: a path. The path of a sweep may end in ::SETTING, which is a row ("plain", "both") for
            its best setting, a label ("T=6 alpha=0.3 eta=0"), or "recommended" (the default).
        metric: the metric to compare; None for the first of `samples.METRICS` that there is.

    Raises:
        LatentRefError: there are no samples and no sweep, or they cannot be read.
    """
    text, _, setting = name.partition("::")
    path = Path(text).expanduser()
    if path.is_dir() and (setting or (path / "sweep.json").is_file()):
        path = path / "sweep.json"
    if path.suffix == ".json" and path.is_file():
        return _of_sweep(name, path, setting or "recommended", metric)
    files = _sample_files(path)
    if not files:
        raise LatentRefError(
            f"{name}: there is no samples_*.jsonl and no sweep.json; give the FOLDER of `lm_eval "
            "--log_samples --output_path FOLDER` or the output of `latentref sweep`"
        )
    answered = Answers(name)
    for task, file in files.items():
        with reading(file, samples.ADVICE):
            for sample in samples.iterate(file):
                _add(answered, task, sample, metric or _default_metric(sample, file), file)
    if not answered.tasks:
        raise LatentRefError(f"{name} holds no samples; {samples.ADVICE}")
    return answered


def _add(answered: Answers, task: str, sample: Mapping[str, Any], metric: str, file: Path) -> None:
    key = task if sample["filter"] == "none" else f"{task} ({sample['filter']})"
    judged_by = answered.metrics.setdefault(key, metric)
    answers = answered.tasks.setdefault(key, {})
    if sample["doc_id"] in answers:
        raise LatentRefError(f"{file}: document {sample['doc_id']} occurs twice")
    answers[sample["doc_id"]] = _answer(sample, judged_by, file)


def _sample_files(path: Path) -> dict[str, Path]:
    below = sorted(file for file in path.rglob("samples_*.jsonl") if file.is_file())
    files = [path] if path.is_file() else below
    newest: dict[str, tuple[str, Path]] = {}
    for file in files:
        match = samples.SAMPLES_NAME.fullmatch(file.name)
        task, time = (match["task"], match["date"]) if match else (file.stem, "")
        newest[task] = max(newest.get(task, ("", file)), (time, file))
    return {task: file for task, (_, file) in newest.items()}


def _default_metric(sample: Mapping[str, Any], file: Path) -> str:
    for metric in (*samples.METRICS, *samples.metric_names(sample)):
        if metric in sample:
            return metric
    raise LatentRefError(
        f"{file}: its samples record no metric; log them with `lm_eval --log_samples`, "
        "not --predict_only"
    )


def _answer(sample: Mapping[str, Any], metric: str, file: Path) -> Answer:
    value = sample.get(metric)
    if isinstance(value, float) and not math.isfinite(value):
        raise LatentRefError(
            f"{file}: {metric} of document {sample['doc_id']} is {value}, which is not finite; log "
            "the run again"
        )
    if not isinstance(value, int | float):
        recorded = ", ".join(samples.metric_names(sample)) or "none"
        raise LatentRefError(f"{file}: no metric {metric!r} per document; give one of: {recorded}")
    doc_hash = sample.get("doc_hash")
    if (candidates := samples.candidates(sample)) is None:
        return Answer(float(value), None, doc_hash)
    values, gold = candidates
    margin = values[gold] - max(other for place, other in enumerate(values) if place != gold)
    choice, tied = values.index(max(values)), values.count(max(values)) > 1
    # Log-likelihoods of minus infinity give margins that cannot be averaged.
    return Answer(float(value), margin if math.isfinite(margin) else None, doc_hash, choice, tied)


def _of_sweep(name: str, path: Path, setting: str, metric: str | None) -> Answers:
    if metric not in (None, "acc"):
        raise LatentRefError(f"{name}: a sweep records acc, not {metric!r}; leave --metric out")
    advice = "give the sweep.json that `latentref sweep` wrote"
    content = read_json_object(path, advice)
    with reading(path, advice):
        task, settings = content["task"], content["settings"]
        label = content["recommended"] if setting == "recommended" else setting
        label = content["best"].get(label, label)
        for tried in settings:
            if tried["label"] == label:
                rows = zip(task["documents"], tried["correct"], tried["margins"], strict=True)
                answers = {
                    int(doc_id): Answer(
                        float(correct), float(margin), str(task["hashes"][str(doc_id)])
                    )
                    for doc_id, correct, margin in rows
                }
                name = f"{path}::{label}"
                return Answers(name, {str(task["name"]): answers}, {str(task["name"]): "acc"})
        labels = ", ".join(tried["label"] for tried in settings)
    raise LatentRefError(
        f"{name}: no setting {setting!r}; give recommended, {', '.join(content['best'])}, "
        f"or one of: {labels}"
    )


ALL = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The second run compared with the first on the documents of one task."""

    task: str
    metric: str
    num_documents: int
    first: float
    first_error: float
    second: float
    second_error: float
    difference: Interval
    """Difference of the metric's mean, second minus first, with its 95 % paired bootstrap
    interval."""
    margin_difference: Interval | None
    """The same for the gold answer's margin in nats; None if candidates were not scored."""
    test: McNemar | None
    """The exact McNemar test; None for a metric with other values than 0 and 1."""
    smallest: float | None
    """The smallest difference that this many documents can show (`detectable_difference`); None
    for a metric with other values than 0 and 1."""


def compare(first: Answers, second: Answers, *, seed: int) -> list[Comparison]:
    """A comparison for each common task and, if there are several, one over all documents.

    Documents that only one run has are left out, with a warning.

    Raises:
        LatentRefError: the runs have no task in common, or different documents of the same number.
    """
    tasks = [task for task in first.tasks if task in second.tasks]
    if not tasks:
        raise LatentRefError(
            f"no task in common: {first.name} has {', '.join(first.tasks)}; {second.name} has "
            f"{', '.join(second.tasks)}; compare runs of the same tasks"
        )
    pairs = {task: _align(task, first, second) for task in tasks}
    comparisons = [_compared(task, first.metrics[task], pairs[task], seed) for task in tasks]
    if len(tasks) > 1:
        everything = [pair for task in tasks for pair in pairs[task]]
        metrics = ", ".join(dict.fromkeys(first.metrics[task] for task in tasks))
        comparisons.append(_compared(ALL, metrics, everything, seed))
    return comparisons


def as_text(comparisons: Sequence[Comparison]) -> str:
    """A block of lines for each comparison."""
    return "\n\n".join("\n".join(_block(comparison)) for comparison in comparisons)


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """All numbers, as JSON values."""
    return [dataclasses.asdict(comparison) for comparison in comparisons]


def _align(task: str, first: Answers, second: Answers) -> list[tuple[Answer, Answer]]:
    judged_by = first.metrics[task], second.metrics[task]
    if judged_by[0] != judged_by[1]:
        raise LatentRefError(
            f"{task} is judged by {judged_by[0]} in {first.name}, by {judged_by[1]} in "
            f"{second.name}; give --metric with a metric that both have"
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
        test=mcnemar(list(map(bool, first)), list(map(bool, second))) if is_accuracy else None,
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


def _block(result: Comparison) -> list[str]:
    lines = [
        f"{result.task}: {result.num_documents} documents, {result.metric}",
        f"  first  {result.first:.4f} +- {result.first_error:.4f}",
        f"  second {result.second:.4f} +- {result.second_error:.4f}",
        f"  second - first {_interval(result.difference)} (95 % paired bootstrap)",
    ]
    if result.margin_difference is not None:
        lines.append(f"  margin of the gold answer {_interval(result.margin_difference)} nats")
    if result.test is not None:
        lines.append(
            f"  only the first right: {result.test.only_first}, only the second: "
            f"{result.test.only_second}, exact McNemar p = {result.test.p_value:.4f}"
        )
        lines.append(f"  smallest detectable difference (80 % power): {result.smallest:.4f}")
    return lines


def _interval(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
