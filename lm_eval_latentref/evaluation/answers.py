"""Answers to single documents, from lm-eval's logged samples or from a sweep.

    answers = read_answers("results/coconut")                   # folder of `lm_eval --log_samples`
    answers = read_answers("sweeps/mathqa/sweep.json::both")    # a row's best setting of a sweep

Compares nothing and runs nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_json_object, reading
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import samples

METRICS = ("acc", "exact_match")
"""What counts when no metric is named: the first of these that a task's samples have."""

_SAMPLES_FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


@dataclass(frozen=True)
class Answer:
    """How one document was answered."""

    value: float
    """Of the metric: 1 right, 0 wrong, where it is an accuracy."""
    margin: float | None
    """Log-likelihood of the gold candidate minus the best other; None without candidates."""
    doc_hash: str | None
    """lm-eval's hash of the document, where it was recorded."""
    choice: int | None = None
    """The candidate that lm-eval takes for the answer, the first of equals; None if not known."""
    tied: bool | None = None
    """Whether other candidates have its log-likelihood to the last bit; None if not known."""


@dataclass(frozen=True)
class Answers:
    """All answers of one run."""

    name: str
    tasks: dict[str, dict[int, Answer]] = field(default_factory=dict)
    """By task (with its filter, if it has one) and document."""
    metrics: dict[str, str] = field(default_factory=dict)
    """By which each task was judged."""


def read_answers(name: str, *, metric: str | None = None) -> Answers:
    """The answers in a samples file, in a folder of them (the newest of each task), or in a sweep.

    Args:
        name: a path; a sweep's may end in ::SETTING, where SETTING is a row ("plain", "both": its
            best setting), a label ("T=6 alpha=0.3 eta=0") or "recommended" (the default).
        metric: of the samples; None for the first of `METRICS`.

    Raises:
        LatentRefError: nothing of the kind is there, or it cannot be read.
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
            f"{name}: no samples_*.jsonl and no sweep.json there; give what `lm_eval --log_samples "
            "--output_path FOLDER` or `latentref sweep` wrote"
        )
    found = Answers(name)
    for task, file in files.items():
        for sample in samples.iterate(file):
            key = task if sample["filter"] == "none" else f"{task} ({sample['filter']})"
            judged_by = found.metrics.setdefault(key, metric or _default_metric(sample, file))
            answers = found.tasks.setdefault(key, {})
            if sample["doc_id"] in answers:
                raise LatentRefError(f"{file}: document {sample['doc_id']} occurs twice")
            answers[sample["doc_id"]] = _answer(sample, judged_by, file)
    return found


def _sample_files(path: Path) -> dict[str, Path]:
    files = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"))
    newest: dict[str, tuple[str, Path]] = {}
    for file in files:
        match = _SAMPLES_FILE.fullmatch(file.name)
        task, time = (match["task"], match["time"]) if match else (file.stem, "")
        newest[task] = max(newest.get(task, ("", file)), (time, file))
    return {task: file for task, (_, file) in newest.items()}


def _default_metric(sample: Mapping[str, Any], file: Path) -> str:
    for metric in (*METRICS, *samples.metric_names(sample)):
        if metric in sample:
            return metric
    raise LatentRefError(
        f"{file}: its samples record no metric; log them with `lm_eval --log_samples`, "
        "not --predict_only"
    )


def _answer(sample: Mapping[str, Any], metric: str, file: Path) -> Answer:
    value = sample.get(metric)
    if not isinstance(value, int | float) or not math.isfinite(value):
        recorded = ", ".join(samples.metric_names(sample)) or "none"
        raise LatentRefError(f"{file}: no metric {metric!r} per document; it has {recorded}")
    doc_hash = sample.get("doc_hash")
    if (found := samples.candidates(sample)) is None:
        return Answer(float(value), None, doc_hash)
    values, gold = found
    margin = values[gold] - max(other for place, other in enumerate(values) if place != gold)
    choice, tied = values.index(max(values)), values.count(max(values)) > 1
    return Answer(float(value), margin, doc_hash, choice, tied)


def _of_sweep(name: str, path: Path, setting: str, metric: str | None) -> Answers:
    if metric not in (None, "acc"):
        raise LatentRefError(f"{name}: a sweep records acc, not {metric!r}; leave --metric out")
    advice = "give the sweep.json that `latentref sweep` wrote"
    content = read_json_object(path, advice)
    with reading(path, advice):
        task, settings = content["task"], content["settings"]
        label = content["recommended"] if setting == "recommended" else setting
        label = content["best"].get(label, label)
        for one in settings:
            if one["label"] == label:
                rows = zip(task["documents"], one["correct"], one["margins"], strict=True)
                answers = {
                    int(doc_id): Answer(
                        float(correct), float(margin), str(task["hashes"][str(doc_id)])
                    )
                    for doc_id, correct, margin in rows
                }
                name = f"{path}::{label}"
                return Answers(name, {str(task["name"]): answers}, {str(task["name"]): "acc"})
        labels = ", ".join(one["label"] for one in settings)
    raise LatentRefError(
        f"{name}: no setting {setting!r}; give recommended, {', '.join(content['best'])}, "
        f"or one of: {labels}"
    )
