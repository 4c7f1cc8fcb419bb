"""Golden answers for CI: the log-likelihoods and texts expected from a tiny model.

    write_golden(Path("golden.json"), answers(files), made_with={"torch": "2.13.0"})
    compare_golden(read_golden(Path("golden.json")), answers(files))        # {} if all agree

This test is much stricter than a test of accuracy: a log-likelihood that changes by more than
rounding is a mismatch even if the answer stays the same. Greedy texts must be equal.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_json_object, reading, write_text
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.samples import iterate

TOLERANCE = 1e-4
"""How much a log-likelihood in float32 may differ between machines, in nats."""

_NOISE_FACTOR = 2.0  # a third run may differ by twice as much as the first two
_FORMAT_VERSION = 1
_ADVICE = "make one with `latentref check RESULTS --write_golden FILE.json`"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A model's answers to one document, before any filter."""

    doc_hash: str
    log_likelihoods: tuple[float, ...] = ()
    """The log-likelihood of each request in nats; empty for a task that generates text."""
    texts: tuple[str, ...] = ()
    """The text of each request; empty for a task that scores candidates."""


Answers = Mapping[str, Mapping[int, Document]]
"""By task and `doc_id`."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden file."""

    name: str
    tolerance: float
    made_with: Mapping[str, str]
    """The versions and machine of the run that the file was made from."""
    tasks: Answers


def answers(files: Mapping[str, Path]) -> Answers:
    """The answers in the samples file of each task.

    Raises LatentRefError if texts were sampled, because they differ between runs.
    """
    return {
        task: {
            sample["doc_id"]: _document(sample, f"{file}, document {sample['doc_id']}")
            for sample in iterate(file)
        }
        for task, file in files.items()
    }


def write_golden(
    path: Path, tasks: Answers, *, made_with: Mapping[str, str], again: Answers | None = None
) -> float:
    """Writes the golden file of `tasks`, one document per line; returns its tolerance in nats.

    Args:
        again: a second run of the same model (with another batch size or number of threads). The
            tolerance is twice the largest difference between the two runs, at least `TOLERANCE`.
    """
    noise = largest_difference(tasks, again) if again is not None else 0.0
    tolerance = max(TOLERANCE, _NOISE_FACTOR * noise)
    head = {"format_version": _FORMAT_VERSION, "tolerance": tolerance, "made_with": {**made_with}}
    parts = []
    for task, documents in tasks.items():
        lines = [f"{json.dumps(str(key))}: {_line(doc)}" for key, doc in sorted(documents.items())]
        parts.append(f"{json.dumps(task)}: {{\n" + ",\n".join(lines) + "\n}")
    text = json.dumps(head, indent=0)[:-2] + ',\n"tasks": {\n' + ",\n".join(parts) + "\n}\n}\n"
    write_text(path, text)
    return tolerance


def read_golden(path: Path) -> Golden:
    """Reads a golden file; raises LatentRefError if `path` is not one."""
    content = read_json_object(path, _ADVICE)
    with reading(path, _ADVICE):
        if content["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format_version {content['format_version']}")
        tasks = {
            task: {int(key): _read_document(fields) for key, fields in documents.items()}
            for task, documents in content["tasks"].items()
        }
        return Golden(
            name=str(path),
            tolerance=float(content["tolerance"]),
            made_with=dict(content["made_with"]),
            tasks=tasks,
        )


def compare_golden(golden: Golden, candidate: Answers) -> dict[str, str]:
    """For each task of `golden` that does not match, the reason in one phrase."""
    reasons = {}
    for task, expected in golden.tasks.items():
        if task not in candidate:
            reasons[task] = "the candidate has no samples of this task"
        elif reason := _difference(expected, candidate[task], golden.tolerance):
            reasons[task] = reason
    return reasons


def largest_difference(first: Answers, second: Answers) -> float:
    """The largest difference, in nats, between log-likelihoods of two runs of one model.

    Raises LatentRefError if the runs have different documents or texts.
    """
    largest = 0.0
    for task, documents in first.items():
        if reason := _difference(documents, second.get(task, {}), math.inf):
            raise LatentRefError(f"{task}: two runs of one model should agree, but {reason}")
        for key, document in documents.items():
            largest = max([largest, *_distances(document, second[task][key])])
    return largest


def _difference(
    expected: Mapping[int, Document], seen: Mapping[int, Document], tolerance: float
) -> str | None:
    """How `seen` differs from `expected`, in one phrase; None if they agree."""
    if expected.keys() != seen.keys():
        return f"it has {len(seen)} documents, not the {len(expected)} that are expected"
    for key, document in expected.items():
        if document.doc_hash != seen[key].doc_hash:
            return f"document {key} is not the same document"
    texts = [key for key, document in expected.items() if document.texts != seen[key].texts]
    if texts:
        key = texts[0]
        wrote, expected_text = seen[key].texts, expected[key].texts
        return (
            f"{len(texts)} of {len(expected)} texts differ; document {key} reads {wrote!r}, "
            f"not {expected_text!r}"
        )
    distances = {key: max(_distances(document, seen[key])) for key, document in expected.items()}
    worst = max(distances, key=distances.__getitem__)
    beyond = sum(distance > tolerance for distance in distances.values())
    if not beyond:
        return None
    return (
        f"log-likelihoods of {beyond} of {len(expected)} documents differ by more than "
        f"{tolerance:.2g} nats, most at document {worst}: {distances[worst]:.2g}"
    )


def _distances(first: Document, second: Document) -> list[float]:
    """Differences of log-likelihoods in nats; infinite if a value is nan or missing."""
    ours, theirs = first.log_likelihoods, second.log_likelihoods
    if len(ours) != len(theirs):
        return [math.inf]
    distances = [0.0 if a == b else abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return [math.inf if math.isnan(distance) else distance for distance in distances] or [0.0]


def _document(sample: Mapping[str, Any], where: str) -> Document:
    arguments = sample.get("arguments") or {}
    settings = [values.get("arg_1") for values in arguments.values()]
    is_text = any(isinstance(value, dict) for value in settings)
    if any(isinstance(value, dict) and value.get("do_sample") for value in settings):
        raise LatentRefError(f"{where}: its text was sampled; golden texts must be greedy")
    try:
        answers = [answer for repeats in sample["resps"] for answer in repeats]
        texts = tuple(str(answer) for answer in answers if is_text)
        scores = tuple(_nats(answer, where) for answer in answers if not is_text)
    except (KeyError, TypeError, ValueError) as error:
        raise LatentRefError(
            f"{where}: no answer is logged ({type(error).__name__} {error}); give samples that "
            "`lm_eval --log_samples` wrote"
        ) from error
    doc_hash = str(sample.get("doc_hash", ""))[:16]
    return Document(doc_hash=doc_hash, log_likelihoods=scores, texts=texts)


def _nats(answer: Any, where: str) -> float:
    """The log-likelihood in an answer as lm-eval logs it: "-1.5", or ["-1.5", IS_GREEDY]."""
    value = round(float(answer[0] if isinstance(answer, list) else answer), 6) + 0.0  # no -0.0
    if not math.isfinite(value):
        raise LatentRefError(f"{where}: a log-likelihood of {value} cannot be compared")
    return value


def _line(document: Document) -> str:
    fields = {name: value for name, value in dataclasses.asdict(document).items() if value}
    return json.dumps(fields, ensure_ascii=False)


def _read_document(fields: Mapping[str, Any]) -> Document:
    return Document(
        doc_hash=str(fields.get("doc_hash", "")),
        log_likelihoods=tuple(float(value) for value in fields.get("log_likelihoods", ())),
        texts=tuple(str(text) for text in fields.get("texts", ())),
    )
