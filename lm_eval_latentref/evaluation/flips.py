"""Documents whose value changed between two runs, with what each run answered.

flips = read_flips(first, second, "acc,none", num=10)      # those lost first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_latentref.evaluation.results import Task
from lm_eval_latentref.evaluation.samples import candidates, read_at, request

_MAX_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One document."""

    document: int
    """lm-eval's `doc_id`."""
    baseline: float
    """Value of the metric in the first run."""
    candidate: float
    gold: str
    baseline_answer: str
    candidate_answer: str


def read_flips(first: Task, second: Task, metric: str, *, num: int) -> tuple[Flip, ...]:
    """The `num` documents that changed most for the worse, then those for the better.

    Both tasks have samples of the same documents.
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


def gold_text(sample: Mapping[str, Any], limit: int = _MAX_CHARACTERS) -> str:
    """The right answer: the gold candidate's text, or the target; one line of `limit` at most."""
    scored = candidates(sample)
    return clip(_choice(sample, scored[1]) if scored else sample.get("target"), limit)


def answer_text(sample: Mapping[str, Any], limit: int = _MAX_CHARACTERS) -> str:
    """What the model answered: its likeliest candidate, or the text that was judged."""
    if scored := candidates(sample):
        values, _ = scored
        return clip(_choice(sample, values.index(max(values))), limit)
    answers = sample.get("filtered_resps")
    return clip(answers[0] if isinstance(answers, list) and answers else answers, limit)


def clip(text: object, limit: int = _MAX_CHARACTERS) -> str:
    """`text` in one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _choice(sample: Mapping[str, Any], number: int) -> str:
    """The text of a candidate, or its number where the requests are not logged."""
    return str(request(sample, number).get("arg_1", number))
