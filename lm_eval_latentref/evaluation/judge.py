"""Evaluates several settings on a test task in one pass, and compares them with the plain setting.

    judged = judge(model, load_task("latentref_graph_mc"), settings, plain=plain, journal=path)
    judged[0].difference.low, judged[0].by_steps[3].accuracy

A problem counts as right if greedy decoding writes its gold answer directly after the thoughts;
margins compare its candidates. The settings were chosen beforehand, on a dev split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.dev_tasks import DevTask
from lm_eval_latentref.evaluation.settings import Outcome, Setting
from lm_eval_latentref.evaluation.statistics import Interval, mean_intervals
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.evaluation.sweep_run import GridRun

NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Part:
    """The results on all problems with the same number of steps."""

    num: int
    """The number of these problems."""
    accuracy: float
    gained: int
    """The number of problems that only this setting has right."""
    lost: int
    """The number of problems that only the plain setting has right."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The results of one setting on the test problems."""

    setting: Setting
    accuracy: float
    margin: float
    """The mean margin in nats."""
    difference: Interval
    """Accuracy of this setting minus that of the plain setting."""
    margin_difference: Interval
    """Mean margin of this setting minus that of the plain setting, in nats."""
    gained: int
    """The number of problems that only this setting has right."""
    lost: int
    """The number of problems that only the plain setting has right."""
    by_steps: dict[int, Part]
    """Results by the number of gold steps; empty if the problems have no steps."""
    correct: tuple[bool, ...]
    """Whether each problem is right, in the task's order."""


def judge(
    model: SweepModel,
    task: DevTask,
    settings: Sequence[Setting],
    *,
    plain: Setting,
    journal: Path,
    seed: int = 0,
) -> list[Judged]:
    """The results of `settings` on `task`, in the order of `settings`.

    Args:
        plain: the setting that the others are compared with.
        journal: file of finished work, from which the same call continues.
        seed: the seed of the bootstrap.

    Raises:
        LatentRefError: thoughts overflowed under some setting.
    """
    run = GridRun(model, task, list(dict.fromkeys([plain, *settings])), written=True)
    run.fill(journal)
    outcomes, overflowed = run.outcomes()
    if overflowed:
        setting, num = next(iter(overflowed.items()))
        raise LatentRefError(
            f"{task.name}: thoughts overflowed on {num} documents under {setting.label}; leave "
            "that setting out"
        )
    by_setting = {outcome.setting: outcome for outcome in outcomes}
    steps_N = [document.num_steps for document in task.documents]
    judged = [by_setting[setting] for setting in settings]
    return _compared(judged, by_setting[plain], steps_N, seed)


def _compared(
    outcomes: Sequence[Outcome], plain: Outcome, steps_N: Sequence[int | None], seed: int
) -> list[Judged]:
    correct_SN = np.array([outcome.correct for outcome in outcomes], dtype=float)
    margins_SN = np.array([outcome.margins for outcome in outcomes])
    differences_SN = correct_SN - np.array(plain.correct, dtype=float)
    intervals = mean_intervals(
        np.concatenate([differences_SN, margins_SN - np.array(plain.margins)]),
        seed=seed,
        num_resamples=NUM_RESAMPLES,
    )
    return [
        Judged(
            setting=outcome.setting,
            accuracy=outcome.accuracy,
            margin=outcome.margin,
            difference=intervals[number],
            margin_difference=intervals[len(outcomes) + number],
            gained=int((differences_SN[number] > 0).sum()),
            lost=int((differences_SN[number] < 0).sum()),
            by_steps=_by_steps(correct_SN[number], differences_SN[number], steps_N),
            correct=outcome.correct,
        )
        for number, outcome in enumerate(outcomes)
    ]


def _by_steps(
    correct_N: np.ndarray, differences_N: np.ndarray, steps_N: Sequence[int | None]
) -> dict[int, Part]:
    known = sorted({steps for steps in steps_N if steps is not None})
    places = {steps: np.array([number == steps for number in steps_N]) for steps in known}
    return {
        steps: Part(
            num=int(place_N.sum()),
            accuracy=float(correct_N[place_N].mean()),
            gained=int((differences_N[place_N] > 0).sum()),
            lost=int((differences_N[place_N] < 0).sum()),
        )
        for steps, place_N in places.items()
    }
