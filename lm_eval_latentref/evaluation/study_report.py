"""Turns a study into JSON values, and writes them with their page.

    content = study_json(study, command="latentref study ...")
    save_study(study, "results/mine", command="latentref study ...")

`study_page` makes the page.
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
from lm_eval_latentref.evaluation.report import (
    HEAT_MAP,
    STUDY,
    Content,
    save,
)
from lm_eval_latentref.evaluation.runs import StudyRun
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    interval_over_seeds,
    paired_interval,
    standard_error,
)
from lm_eval_latentref.evaluation.study import Study, StudyRow, TrainedSet
from lm_eval_latentref.evaluation.study_options import COCONUT
from lm_eval_latentref.evaluation.study_page import CHANCE, study_page
from lm_eval_latentref.evaluation.sweep import Sweep, sweep_json
from lm_eval_latentref.training.log import TrainingLog


def study_json(study: Study, *, command: str) -> dict[str, Any]:
    """All numbers of the study except those of single problems."""
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
        # The score of guessing is the same on the companion with candidates.
        "chance": CHANCE.get(study.task.removesuffix("_mc"), (None, ""))[0],
        "sets_are_seeds": are_seeds(study),
        "sets": [_set_json(number, trained) for number, trained in enumerate(study.sets)],
        "mean_over_sets": {name: _mean_json(study, name) for name in _names(study)},
    }


def made_with(study: Study) -> list[dict[str, Any]]:
    """The distinct versions and machines of the rows."""
    origins: list[dict[str, Any]] = []
    for run in (row.run for trained in study.sets for row in trained.rows.values()):
        if run.made_with not in origins:
            origins.append(dict(run.made_with))
    return origins


def mean_difference(study: Study, name: str) -> Interval:
    """Accuracy of row `name` minus Coconut's, averaged over the sets that have the row.

    The interval is a bootstrap over problems.
    """
    sets = [trained for trained in study.sets if name in trained.rows]
    rows_N = np.mean([trained.rows[name].run.values for trained in sets], axis=0)
    coconut_N = np.mean([trained.rows[COCONUT].run.values for trained in sets], axis=0)
    return paired_interval(rows_N, coconut_N, seed=study.seed)


def are_seeds(study: Study) -> bool:
    """Whether the sets may be the same epoch of trainings that differ in their seed.

    A set without a recipe is not known to be of any seed.
    """
    seeds = [seed for trained in study.sets if (seed := trained.recipe.get("seed")) is not None]
    return len(set(seeds)) == len(seeds) and len({trained.epoch for trained in study.sets}) == 1


def difference_over_seeds(study: Study, name: str) -> Interval | None:
    """Accuracy of row `name` minus Coconut's, with Student's interval over the training seeds.

    It is None for fewer than three seeds.
    """
    if not are_seeds(study):
        return None
    rows = [trained.rows for trained in study.sets if name in trained.rows]
    return interval_over_seeds([row[name].run.accuracy - row[COCONUT].run.accuracy for row in rows])


def _names(study: Study) -> Iterable[str]:
    return dict.fromkeys(name for trained in study.sets for name in trained.rows)


def _mean_json(study: Study, name: str) -> dict[str, Any]:
    runs = [trained.rows[name].run for trained in study.sets if name in trained.rows]
    over_seeds = difference_over_seeds(study, name)
    return {
        "sets": len(runs),
        "accuracy": float(np.mean([run.accuracy for run in runs])),
        "accuracy_stderr": standard_error(np.mean([run.values for run in runs], axis=0)),
        "against_coconut": dataclasses.asdict(mean_difference(study, name)),
        "over_seeds": over_seeds and dataclasses.asdict(over_seeds),
    }


def _set_json(number: int, trained: TrainedSet) -> dict[str, Any]:
    return {
        "folder": trained.folder,
        "recipe": dict(trained.recipe),
        "trained_on": list(trained.trained_on),
        "heat_map": HEAT_MAP.format(number) if trained.heat_map.is_file() else None,
        "rows": {
            name: _row_json(row, trained.rows[COCONUT].run) for name, row in trained.rows.items()
        },
        "sweep": _sweep_json(trained.sweep),
        "contrast_sweeps": {
            name: _sweep_json(result) for name, result in trained.contrast_sweeps.items()
        },
        "weights_file": trained.weights_file,
        "train_commands": list(trained.train_commands),
        "trainings": {name: _training_json(log) for name, log in trained.trainings.items()},
    }


def _sweep_json(result: Sweep) -> dict[str, Any]:
    """The results of the sweep except those of single documents."""
    content = sweep_json(result, command="")
    for setting in content["settings"]:
        del setting["correct"], setting["margins"]
    names = ("best", "recommended", "rule", "best_of_all", "rivals", "smallest_effect", "cost")
    return {
        **{name: content[name] for name in names},
        "problems": len(result.task.documents),
        "free_answers": result.task.is_free,
        "settings": content["settings"],
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


def _row_json(row: StudyRow, coconut: StudyRun) -> dict[str, Any]:
    run, scored, against = row.run, row.candidates_run, row.candidates_against
    return {
        "command": run.command,
        "setting": row.setting,
        "model_args": dict(row.model_args),
        "accuracy": run.accuracy,
        "accuracy_stderr": run.accuracy_error,
        "by_steps": _by_steps(run, coconut),
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


def _by_steps(run: StudyRun, coconut: StudyRun) -> dict[str, Content]:
    """Results by the number of gold steps; empty if the documents have no steps."""
    values_N, coconut_N = np.array(run.values), np.array(coconut.values)
    by_steps: dict[str, Content] = {}
    for num in sorted({num for num in run.num_steps if num is not None}):
        place_N = np.array([steps == num for steps in run.num_steps])
        by_steps[str(num)] = {
            "problems": int(place_N.sum()),
            "accuracy": float(values_N[place_N].mean()),
            "against_coconut": float((values_N - coconut_N)[place_N].mean()),
        }
    return by_steps


def save_study(study: Study, folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes the page, results.json and the heat maps of sweeps; returns the page."""
    return _save(study, Path(folder), study_json(study, command=command))


def save_studies(studies: Sequence[Study], folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes each study into a subfolder, and an overview into `folder`; returns the overview."""
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
        for number, trained in enumerate(study.sets):
            if trained.heat_map.is_file():
                shutil.copyfile(trained.heat_map, path / HEAT_MAP.format(number))
    return save(content, path, study_page(content))
