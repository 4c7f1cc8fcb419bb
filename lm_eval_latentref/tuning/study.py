"""All rows of the paper's table on trained sets: baselines, Coconut, and each refinement.

    study = run_study(["out/hops-s0", "out/hops-s1"], task="latentref_hops", work="out/study")
    study.sets[0].rows["both"].run.accuracy

Settings of the refined rows are chosen by a sweep of the dev task; the test task is evaluated once
with each. What is finished is kept in `work`, so the same call goes on where one stopped.
Deliberately knows no table layout: that is `study_report`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.provenance import command
from lm_eval_latentref.tuning.compare import Comparison, compare
from lm_eval_latentref.tuning.runs import Run, evaluate
from lm_eval_latentref.tuning.sweep import sweep
from lm_eval_latentref.tuning.sweep_report import RESULT_NAME, save
from lm_eval_latentref.tuning.training_log import TrainingLog, read_training, retrain_command

COCONUT = "Coconut"
BASELINES = {"No-CoT": "no_cot", "CoT": "strong", "pause tokens": "pause"}
"""Rows that are a part of the trained folder, evaluated as it is."""
REFINED = {COCONUT: "plain", "+ residual": "residual", "+ search": "search", "both": "both"}
"""Rows of the set itself, by the sweep's row that gives their settings."""

MEMORY_RATES = (0.05, 0.1, 0.3)
STEP_SIZES = (-0.1, 0.03, 0.1, 0.3)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table for one trained set."""

    run: Run
    model_args: Mapping[str, Any]
    setting: str | None
    """Of a refined row, in the sweep's words."""
    against_coconut: Comparison | None
    """On the same problems; None for Coconut itself."""
    margin: Comparison | None
    """Against Coconut by the multiple-choice task; None where that is not asked."""
    margin_mean: float | None = None
    """Of the gold answer in nats, by that task."""
    margin_command: str | None = None
    """What repeats that."""


@dataclass(frozen=True, kw_only=True)
class TrainedSet:
    """All rows of one training seed."""

    folder: str
    recipe: Mapping[str, Any]
    """As the training resolved it; empty where the folder has none."""
    rows: Mapping[str, Row]
    sweep: Mapping[str, Any]
    """The contents of sweep.json, the single documents left out."""
    training: TrainingLog | None = None
    """What the folder tells of its training; None if nothing."""
    train_command: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study."""

    task: str
    dev_task: str
    sets: tuple[TrainedSet, ...]
    seed: int
    batch_size: int


def run_study(
    folders: Sequence[str],
    *,
    task: str,
    work: str,
    latent_steps: int | None = None,
    memory_rates: Sequence[float] = MEMORY_RATES,
    step_sizes: Sequence[float] = STEP_SIZES,
    batch_size: int = 100,
    limit: int | None = None,
    seed: int = 0,
) -> Study:
    """Evaluates each trained folder, one per training seed, by all rows.

    Args:
        task: a generation task that has `_mc` and `_mc_dev` companions.
        work: folder for sweeps and logged samples.
        latent_steps: thoughts of the Coconut rows; default: what latentref.json says.
        memory_rates, step_sizes: the sweep's grid, step sizes in units of d/2.
        limit: the first so many documents of the sweep and of the test.
        seed: of the bootstrap.

    Raises:
        LatentRefError: a folder is not there or cannot be evaluated.
    """
    options = _Options(
        task=task,
        latent_steps=latent_steps,
        memory_rates=tuple(memory_rates),
        step_sizes=tuple(step_sizes),
        batch_size=batch_size,
        limit=limit,
        seed=seed,
    )
    sets = [options.study(folder, Path(work) / Path(folder).name) for folder in folders]
    dev_task = options.dev_task
    return Study(task=task, dev_task=dev_task, sets=tuple(sets), seed=seed, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What all sets of a study share."""

    task: str
    latent_steps: int | None
    memory_rates: tuple[float, ...]
    step_sizes: tuple[float, ...]
    batch_size: int
    limit: int | None
    seed: int

    @property
    def dev_task(self) -> str:
        return f"{self.task}_mc_dev"

    def study(self, folder: str, work: Path) -> TrainedSet:
        if not (Path(folder) / "latentref.json").is_file():
            raise LatentRefError(
                f"{folder}: no latentref.json there; give a folder that `latentref train` wrote"
            )
        training = read_training(folder)
        swept = self._sweep(folder, work / "sweep")
        rows: dict[str, Row] = {}
        for name, part in BASELINES.items():
            if (Path(folder) / part).is_dir():
                args = {"pretrained": f"{folder}/{part}"}
                rows[name] = self._row(args, work / part, None, None)
        for name, key in REFINED.items():
            if key in swept["best"]:
                setting = _setting(swept, swept["best"][key])
                args = {"pretrained": folder, **_arguments(setting)}
                label = setting["label"]
                rows[name] = self._row(args, work / key, label, rows.get(COCONUT))
        rows = self._compared(rows)
        return TrainedSet(
            folder=folder,
            recipe=_recipe(folder),
            rows=rows,
            sweep=_short(swept),
            training=training,
            train_command=retrain_command(folder),
        )

    def _sweep(self, folder: str, work: Path) -> dict[str, Any]:
        # The journal makes this quick when it was done before.
        result = sweep(
            {"pretrained": folder, "batch_size": self.batch_size},
            task=self.dev_task,
            output=str(work),
            latent_steps=() if self.latent_steps is None else (self.latent_steps,),
            memory_rates=self.memory_rates,
            step_sizes=self.step_sizes,
            limit=self.limit,
            seed=self.seed,
        )
        save(result, work, command=command())
        content: dict[str, Any] = json.loads((work / RESULT_NAME).read_text(encoding="utf-8"))
        return content

    def _row(
        self, args: Mapping[str, Any], work: Path, setting: str | None, coconut: Row | None
    ) -> Row:
        run = self._evaluate(args, self.task, work)
        margin, mean, margin_command = None, None, None
        if setting is not None:
            own = self._evaluate(args, f"{self.task}_mc", work)
            other = own
            if coconut is not None:
                plain = work.parent / REFINED[COCONUT]
                other = self._evaluate(coconut.model_args, f"{self.task}_mc", plain)
            (margin,) = compare(other.answers, own.answers, seed=self.seed)
            mean, margin_command = float(np.mean(own.margins)), own.command
        return Row(
            run=run,
            model_args=args,
            setting=setting,
            against_coconut=None,
            margin=margin,
            margin_mean=mean,
            margin_command=margin_command,
        )

    def _evaluate(self, args: Mapping[str, Any], task: str, work: Path) -> Run:
        return evaluate(
            args, task=task, folder=work / task, batch_size=self.batch_size, limit=self.limit
        )

    def _compared(self, rows: Mapping[str, Row]) -> dict[str, Row]:
        coconut = rows[COCONUT].run.answers
        found = {}
        for name, row in rows.items():
            difference = None
            if name != COCONUT:
                (difference,) = compare(coconut, row.run.answers, seed=self.seed)
            found[name] = dataclasses.replace(row, against_coconut=difference)
        return found


def _setting(swept: Mapping[str, Any], label: str) -> dict[str, Any]:
    return next(one for one in swept["settings"] if one["label"] == label)


def _arguments(setting: Mapping[str, Any]) -> dict[str, Any]:
    """As model arguments; all are given, so that what latentref.json recommends does not count."""
    names = ("latent_steps", "memory_rate", "search_step_size", "search_steps")
    return {name: setting[name] for name in names}


def _short(swept: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("correct", "margins")
    settings = [
        {name: value for name, value in one.items() if name not in left_out}
        for one in swept["settings"]
    ]
    names = ("best", "recommended", "rule", "best_of_all", "rivals", "smallest_effect", "cost")
    return {**{name: swept[name] for name in names}, "settings": settings}


def _recipe(folder: str) -> dict[str, Any]:
    path = Path(folder) / "recipe.yaml"
    if not path.is_file():
        return {}
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    content.pop("output", None)  # where it was made decides nothing
    return content
