"""A study as JSON values: all its numbers, none formatted.

    content = study_json(study, command="latentref study ...")

What is printed of it is in `report` and `overview`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.errors import saving
from lm_eval_latentref.evaluation.overview import overview_json, overview_page, place
from lm_eval_latentref.evaluation.report import CHANCE, HEAT_MAP, STUDY, save, study_page
from lm_eval_latentref.evaluation.statistics import Interval, paired_interval, standard_error
from lm_eval_latentref.evaluation.study import COCONUT, Row, Study, TrainedSet
from lm_eval_latentref.training.log import TrainingLog


def study_json(study: Study, *, command: str) -> dict[str, Any]:
    """All numbers, without the single problems."""
    run = study.sets[0].rows[COCONUT].run
    return {
        "format": STUDY,
        "command": command,
        "made_with": made_with(study),
        "task": study.task,
        "dev_task": study.dev_task,
        "metric": run.metric,
        "problems": len(run.values),
        "batch_size": study.batch_size,
        "bootstrap_seed": study.seed,
        "majority_answer": run.majority,
        # A companion with candidates has the chance of its task.
        "chance": CHANCE.get(study.task.removesuffix("_mc"), (None, ""))[0],
        "sets": [_set_json(number, one) for number, one in enumerate(study.sets)],
        "mean_over_sets": {name: _mean_json(study, name) for name in _names(study)},
    }


def made_with(study: Study) -> list[dict[str, Any]]:
    """Versions and machines that the rows were run with, each once."""
    found: list[dict[str, Any]] = []
    for run in (row.run for one in study.sets for row in one.rows.values()):
        if run.made_with not in found:
            found.append(dict(run.made_with))
    return found


def mean_difference(study: Study, name: str) -> Interval:
    """Of row `name` against Coconut over all sets that have it: problems are what is resampled."""
    sets = [one for one in study.sets if name in one.rows]
    rows_N = np.mean([one.rows[name].run.values for one in sets], axis=0)
    coconut_N = np.mean([one.rows[COCONUT].run.values for one in sets], axis=0)
    return paired_interval(rows_N, coconut_N, seed=study.seed)


def _names(study: Study) -> Iterable[str]:
    return dict.fromkeys(name for one in study.sets for name in one.rows)


def _mean_json(study: Study, name: str) -> dict[str, Any]:
    runs = [one.rows[name].run for one in study.sets if name in one.rows]
    return {
        "sets": len(runs),
        "accuracy": float(np.mean([run.accuracy for run in runs])),
        "accuracy_stderr": standard_error(np.mean([run.values for run in runs], axis=0)),
        "against_coconut": dataclasses.asdict(mean_difference(study, name)),
    }


def _set_json(number: int, one: TrainedSet) -> dict[str, Any]:
    return {
        "folder": one.folder,
        "recipe": dict(one.recipe),
        "trained_on": list(one.trained_on),
        "heat_map": HEAT_MAP.format(number) if one.heat_map.is_file() else None,
        "rows": {name: _row_json(row) for name, row in one.rows.items()},
        "sweep": dict(one.sweep),
        "weights_file": one.weights_file,
        "train_commands": list(one.train_commands),
        "trainings": {name: _training_json(log) for name, log in one.trainings.items()},
    }


def _training_json(log: TrainingLog) -> dict[str, Any]:
    references = {
        role: {"epoch": epoch.number, "accuracy": epoch.accuracy, "problems": epoch.num_problems}
        for role, epoch in log.references.items()
    }
    return {
        "seconds": dict(log.seconds),
        "losses": {name: list(losses) for name, losses in log.losses.items()},
        "references": references,
        "data": {name: dict(counts) for name, counts in log.data.items()},
    }


def _row_json(row: Row) -> dict[str, Any]:
    run, scored, against = row.run, row.choosing, row.choosing_against
    return {
        "command": run.command,
        "setting": row.setting,
        "model_args": dict(row.model_args),
        "accuracy": run.accuracy,
        "accuracy_stderr": run.accuracy_error,
        "tokens_per_problem": run.tokens_per_document,
        "seconds_per_problem": run.seconds_per_document,
        "peak_memory_bytes": run.peak_memory,
        "cost": dict(run.cost),
        "checkpoints": list(run.checkpoints),
        "against_coconut": row.against_coconut and dataclasses.asdict(row.against_coconut),
        "margin_command": scored and scored.command,
        "choice_accuracy": scored and scored.accuracy,
        "choice_accuracy_stderr": scored and scored.accuracy_error,
        "choices_tied": scored and scored.tied,
        "commonest_choice": scored and scored.commonest_choice,
        "margin_mean": float(np.mean(scored.margins)) if scored else None,
        "margin_against_coconut": against and dataclasses.asdict(against),
    }


def save_study(study: Study, folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes page, results.json and each sweep's heat map if it is drawn; returns the page."""
    return _save(study, Path(folder), study_json(study, command=command))


def save_studies(studies: Sequence[Study], folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes each study into a subfolder of its own, the page of all into `folder`; returns it."""
    root = Path(folder)
    pages = {study.task: place(study.task) for study in studies}
    contents = {study.task: study_json(study, command=command) for study in studies}
    for study in studies:
        _save(study, (root / pages[study.task]).parent, contents[study.task])
    content = overview_json(contents, pages, command=command)
    return save(content, root, overview_page(contents, pages, command=command))


def _save(study: Study, path: Path, content: dict[str, Any]) -> str:
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(study.sets):
            if one.heat_map.is_file():
                shutil.copyfile(one.heat_map, path / HEAT_MAP.format(number))
    return save(content, path, study_page(content))
