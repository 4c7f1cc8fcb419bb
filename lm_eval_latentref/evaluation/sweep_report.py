"""A finished sweep as text for people and as one JSON object for machines.

    print(as_text(result))
    save(result, "sweeps/mathqa", command="latentref sweep ...")    # sweep.json and sweep.png

Deliberately runs nothing and decides nothing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.evaluation.plots import heat_map
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.settings import ROWS, RULE, Outcome
from lm_eval_latentref.evaluation.statistics import Interval, mcnemar, mean_intervals
from lm_eval_latentref.evaluation.sweep import Sweep

logger = logging.getLogger(__name__)

RESULT_NAME = "sweep.json"
FORMAT = "latentref sweep 2"
ROW_NAMES = {
    "plain": "plain",
    "residual": "residual only",
    "search": "search only",
    "both": "both",
}
_HEADER = ("row", "T", "alpha", "eta", "S", "accuracy %", "margin", "margin - plain", "p (acc)", "")


def as_text(result: Sweep) -> str:
    """The table, the best of each row, the recommendation, what the split could show, the cost."""
    choice, num_documents = result.choice, len(result.task.documents)
    parts = [
        f"{result.task.name}: {num_documents} documents, {len(result.configs)} settings; eta in "
        f"units of d/2; margin: {margin_meaning(result.task.is_free)}, in nats; "
        "+- is one standard error, [] a 95 % paired bootstrap interval against the best plain "
        "setting, p its exact McNemar test",
        "",
        *_table(result),
        *(
            f"{one.label}: left out, thoughts overflowed on {num} documents"
            for one, num in result.overflowed.items()
        ),
        "",
        "Best of each row, by mean margin:",
        *(f"  {ROW_NAMES[row]:14}{_summary(one)}" for row, one in choice.best.items()),
        "",
        *_verdict(result),
        "",
        _cost(result),
    ]
    if result.written:
        parts.append(f"Written into {result.written}")
    return "\n".join(parts)


def as_json(result: Sweep, *, command: str) -> dict[str, Any]:
    """All of the sweep: what was asked, by what, on what, each document's outcome, the verdict."""
    choice = result.choice
    return {
        "format": FORMAT,
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "seed": result.seed,
        "model": result.model,
        "task": {
            "name": result.task.name,
            "version": result.task.version,
            "free_answers": result.task.is_free,
            "splits": result.task.splits,
            "documents": [one.doc_id for one in result.task.documents],
            "hashes": {one.doc_id: one.doc_hash for one in result.task.documents},
        },
        "settings": [
            _setting_json(result, outcome, interval)
            for outcome, interval in zip(result.outcomes, _against_plain(result), strict=True)
        ],
        "overflowed": {one.label: num for one, num in result.overflowed.items()},
        "best": {row: one.setting.label for row, one in choice.best.items()},
        "recommended": choice.recommended.setting.label,
        "rule": RULE,
        "best_of_all": choice.best_of_all.setting.label,
        "rivals": [
            {**dataclasses.asdict(rival), "setting": rival.setting.label} for rival in choice.rivals
        ],
        "smallest_effect": {
            "accuracy": choice.smallest_accuracy,
            "margin": _number(choice.smallest_margin),
        },
        "cost": dataclasses.asdict(result.cost),
        "written": result.written is not None,
    }


def save(result: Sweep, folder: str | os.PathLike[str], *, command: str) -> None:
    """Writes sweep.json and, where matplotlib is there, sweep.png into `folder`."""
    path = Path(folder) / RESULT_NAME
    content = json.dumps(as_json(result, command=command), indent=1)
    with saving(path):
        path.write_text(content + "\n", "utf-8")
    title = f"{result.task.name}, {len(result.task.documents)} documents"
    try:
        with saving(path.with_suffix(".png")):
            heat_map(result.outcomes, path.with_suffix(".png"), title=title)
    except LatentRefError as error:
        # The work is done and saved: a missing extra is no reason to fail now.
        logger.warning("%s; the same command then draws it, nothing is run again", error)


def margin_meaning(is_free: bool) -> str:
    """What a margin is, of a task whose answers are free or on offer."""
    if is_free:
        return (
            "log-likelihood of the gold answer with its end of sequence (answers are free; right "
            "is what greedy decoding writes so)"
        )
    return "log-likelihood of the gold answer minus the best other"


def last_line(result: Sweep) -> dict[str, Any]:
    """What a script wants to know, for the last line of the output."""
    config = result.configs[result.choice.recommended.setting]
    return {
        "task": result.task.name,
        "recommended": dataclasses.asdict(config),
        "accuracy": result.choice.recommended.accuracy,
        "margin": result.choice.recommended.margin,
        "best": {row: one.setting.label for row, one in result.choice.best.items()},
        "seconds": round(result.cost.seconds, 3),
    }


def _setting_json(result: Sweep, outcome: Outcome, interval: Interval) -> dict[str, Any]:
    plain = result.choice.best["plain"]
    return {
        "label": outcome.setting.label,
        "row": outcome.setting.row,
        "step_size_in_half_d": outcome.setting.step_size,
        **dataclasses.asdict(result.configs[outcome.setting]),
        "accuracy": outcome.accuracy,
        "accuracy_stderr": _number(outcome.accuracy_error),
        "margin": outcome.margin,
        "margin_stderr": _number(outcome.margin_error),
        "margin_against_plain": dataclasses.asdict(interval),
        "mcnemar_against_plain": dataclasses.asdict(mcnemar(plain.correct, outcome.correct)),
        "correct": [int(one) for one in outcome.correct],
        "margins": list(outcome.margins),
    }


def _against_plain(result: Sweep) -> list[Interval]:
    """Of each setting's mean margin minus the best plain one's, each for itself."""
    plain = result.choice.best["plain"]
    margins_SN = np.array([one.margins for one in result.outcomes])
    return mean_intervals(margins_SN - np.array(plain.margins), seed=result.seed)


def _table(result: Sweep) -> list[str]:
    plain, best = result.choice.best["plain"], result.choice.best
    rows: list[Sequence[str]] = [_HEADER]
    judged = list(zip(result.outcomes, _against_plain(result), strict=True))
    judged.sort(key=lambda pair: (ROWS.index(pair[0].setting.row), pair[0].setting))
    for outcome, interval in judged:
        setting = outcome.setting
        marks = ["best"] * (outcome is best[setting.row])
        marks += ["recommended"] * (outcome is result.choice.recommended)
        beside = outcome is plain
        rows.append(
            (
                ROW_NAMES[setting.row],
                str(setting.latent_steps),
                f"{setting.memory_rate:g}",
                f"{setting.step_size:g}",
                str(setting.search_steps),
                f"{100 * outcome.accuracy:.2f} +- {100 * outcome.accuracy_error:.2f}",
                f"{outcome.margin:+.4f} +- {outcome.margin_error:.4f}",
                "" if beside else _interval(interval),
                "" if beside else f"{mcnemar(plain.correct, outcome.correct).p_value:.3f}",
                ", ".join(marks),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _verdict(result: Sweep) -> list[str]:
    choice = result.choice
    lines = [f"Recommended, the simplest within noise: {_summary(choice.recommended)}"]
    for rival in choice.rivals:
        if rival.setting == choice.recommended.setting:
            lines.append(
                f"  against the best of all, {choice.best_of_all.setting.label}: margin "
                f"{_interval(rival.margin)} (jointly over all settings), accuracy "
                f"{100 * rival.accuracy_difference:+.2f} points, p = {rival.test.p_value:.3f}"
            )
    num_near = 1 + sum(rival.within_noise for rival in choice.rivals)
    lines.append(f"  within noise of the best: {num_near} of {1 + len(choice.rivals)} settings")
    smallest = f"{100 * choice.smallest_accuracy:.2f} points of accuracy"
    if math.isfinite(choice.smallest_margin):
        smallest += f" or {choice.smallest_margin:.4f} nats of margin"
    lines.append(
        f"The smallest effect that {len(result.task.documents)} documents could show (paired, "
        f"5 % significance, 80 % power): {smallest}"
    )
    return lines


def _cost(result: Sweep) -> str:
    return f"Cost: {result.cost.seconds:.1f} s, forwards {_forwards(result.cost.forwards)}"


def _summary(outcome: Outcome) -> str:
    return (
        f"{outcome.setting.label}: margin {outcome.margin:+.4f} +- {outcome.margin_error:.4f}, "
        f"accuracy {100 * outcome.accuracy:.2f} +- {100 * outcome.accuracy_error:.2f} %"
    )


def _interval(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _forwards(forwards: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in forwards.items())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
