"""Chooses the settings of a checkpoint set from a grid, by results on a dev split.

    result = sweep({"pretrained": FOLDER}, task="latentref_mathqa_mc_dev", output="sweeps/mathqa",
                   memory_rates=(0.3, 0.5), step_sizes=(0.1, 0.3))
    result.choice.recommended.setting.label

Models are loaded once, and the settings share what they compute alike. Finished work is kept in
OUTPUT/sweep.jsonl, so the same call continues where an interrupted call stopped. `report` makes the
page.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.checkpoints.files import holding, write_text
from lm_eval_latentref.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from lm_eval_latentref.checkpoints.sets import NAMES, CheckpointNames, SetPlan, learnt_from, resolve
from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.evaluation.dev_tasks import DevTask, load_task
from lm_eval_latentref.evaluation.judge import Judged, judge
from lm_eval_latentref.evaluation.plots import heat_map
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.report import SWEEP, SWEEP_RESULTS
from lm_eval_latentref.evaluation.settings import RULE, Choice, Grid, Outcome, Setting, choose
from lm_eval_latentref.evaluation.statistics import Interval, mcnemar, mean_intervals
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.evaluation.sweep_run import SWEPT, Cost, GridRun
from lm_eval_latentref.latent.config import RefinementConfig

logger = logging.getLogger(__name__)

MEMORY_RATES = (0.1, 0.3, 0.5, 0.7)
STEP_SIZES = (0.03, 0.1, 0.3, 1.0)
JOURNAL_NAME, JUDGED_NAME = "sweep.jsonl", "judged.jsonl"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A finished sweep."""

    task: DevTask
    outcomes: tuple[Outcome, ...]
    choice: Choice
    overflowed: dict[Setting, int]
    """Settings that were left out because thoughts became infinite, with the number of documents on
    which they did."""
    configs: dict[Setting, RefinementConfig]
    model: dict[str, Any]
    """The identity of the model: checkpoints, dtype, markers."""
    seed: int
    """The seed of the bootstrap."""
    cost: Cost
    """The cost of all settings, including work of earlier calls."""
    written: Path | None
    """The latentref.json with the recommended setting; None if it was not written."""
    judge_task: DevTask | None = None
    """The test task on which the rows of `Choice.settings` were judged."""
    judged: Mapping[str, Judged] = dataclasses.field(default_factory=dict)
    """The results on `judge_task`, by row."""

    @functools.cached_property
    def against_plain(self) -> list[Interval]:
        """For each outcome, its mean margin minus that of the best plain setting."""
        plain = self.choice.best["plain"]
        margins_SN = np.array([outcome.margins for outcome in self.outcomes])
        return mean_intervals(margins_SN - np.array(plain.margins), seed=self.seed)


def sweep(
    model_args: Mapping[str, Any],
    *,
    task: str,
    output: str,
    latent_steps: Sequence[int] = (),
    memory_rates: Sequence[float] | None = None,
    step_sizes: Sequence[float] | None = None,
    search_steps: Sequence[int] = (1,),
    limit: int | None = None,
    seed: int = 0,
    write: bool = False,
    metadata: Mapping[str, Any] | None = None,
    include_path: str | None = None,
    judge_on: str | None = None,
    plan: SetPlan | None = None,
    model: SweepModel | None = None,
) -> Sweep:
    """Runs the grid on `task` and chooses a setting by `settings.RULE`.

    Args:
        model_args: the `--model_args` of `--model latentref`, without the swept options.
        task: a task on a dev split, with candidates or free answers.
        output: folder of the journal.
        latent_steps, memory_rates, step_sizes, search_steps: the values to try, in the units of
            `Grid`; by default the `latent_steps` in latentref.json, `MEMORY_RATES`, and
            `STEP_SIZES` if the set has references.
        limit, metadata, include_path: as for `load_task`.
        write: whether to write the recommended setting into the checkpoint's latentref.json.
        judge_on: a test task with candidates, on which the best setting of each row and the
            recommended setting are judged once.
        plan, model: the resolved names and the result of `load_model`, if the caller has them.

    Raises LatentRefError if an argument cannot be used, or if another process works in `output`.
    """
    _check_arguments(model_args, write)
    grids = (latent_steps, memory_rates, step_sizes, search_steps)
    started = _Start.of(plan or resolve(CheckpointNames.of(model_args)), *grids)
    tasks = {"limit": limit, "metadata": metadata, "include_path": include_path, **started.trained}
    dev_task = load_task(task, tuning=True, **tasks)
    test = load_task(judge_on, **tasks) if judge_on else None
    with holding(output, "latentref sweep"):
        model = model or load_model(model_args, started.grid, started.plan)
        run = GridRun(model, dev_task, started.grid.settings())
        cost = run.fill(Path(output) / JOURNAL_NAME)
        outcomes, overflowed = run.outcomes()
        choice = choose(outcomes, seed=seed)
        judged = _judge_best(model, test, choice, output, seed) if test else {}
    return Sweep(
        judge_task=test,
        judged=judged,
        task=dev_task,
        outcomes=tuple(outcomes),
        choice=choice,
        overflowed=overflowed,
        configs=run.configs,
        model=run.identity,
        seed=seed,
        cost=cost,
        written=started.write(choice.recommended.setting, run, model_args) if write else None,
    )


def _judge_best(
    model: SweepModel, test: DevTask, choice: Choice, output: str, seed: int
) -> dict[str, Judged]:
    rows, journal = choice.settings, Path(output) / JUDGED_NAME
    judged = judge(
        model, test, list(rows.values()), plain=rows["plain"], journal=journal, seed=seed
    )
    return dict(zip(rows, judged, strict=True))


def load_model(
    model_args: Mapping[str, Any], grid: Grid, plan: SetPlan | None = None
) -> SweepModel:
    """Loads the checkpoints that the settings of `grid` need.

    Args:
        plan: the resolved names of `model_args`, if the caller has them.
    """
    needed = {
        "latent_steps": max(grid.latent_steps),
        "search_step_size": float(any(grid.step_sizes)),
    }
    # lm-eval's default device; without a GPU it means the CPU.
    given = {"device": "cuda:0", **model_args, **needed}
    if plan is not None:
        given = {name: value for name, value in given.items() if name not in NAMES}
        given["pretrained"] = plan
    return SweepModel(**given)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The arguments of a sweep, checked before anything large is loaded."""

    grid: Grid
    plan: SetPlan
    trained: Mapping[str, Any]
    """The splits and questions that the checkpoints were trained on, as `load_task` takes them."""

    @classmethod
    def of(
        cls,
        plan: SetPlan,
        latent_steps: Sequence[int],
        memory_rates: Sequence[float] | None,
        step_sizes: Sequence[float] | None,
        search_steps: Sequence[int],
    ) -> _Start:
        recorded = plan.settings.get("latent_steps", 0)
        assert isinstance(recorded, int)
        steps = tuple(latent_steps) or (recorded,)
        if not any(steps):
            raise LatentRefError(
                "latent_steps=0: without thoughts there is nothing to choose; give the numbers of "
                "thoughts to try, for example --latent_steps 6"
            )
        if step_sizes is None:
            step_sizes = STEP_SIZES if plan.strong and plan.weak else (0.0,)
        grid = Grid(
            latent_steps=steps,
            memory_rates=tuple(MEMORY_RATES if memory_rates is None else memory_rates),
            step_sizes=tuple(step_sizes),
            search_steps=tuple(search_steps),
        )
        splits, questions = learnt_from(plan)
        trained = {"trained_on": splits, "trained_questions": questions}
        return cls(grid=grid, plan=plan, trained=trained)

    @property
    def folder(self) -> Path:
        """The folder of latentref.json, which may not exist yet."""
        backbone = self.plan.backbone
        return Path(backbone.adapter or Path(backbone.base) / backbone.subfolder)

    def write(self, setting: Setting, run: GridRun, model_args: Mapping[str, Any]) -> Path:
        """Writes `setting`, and the references if it needs them, into latentref.json."""
        config, path = run.configs[setting], self.folder / MANIFEST_NAME
        names: dict[str, Any] = {}
        for role in ("strong", "weak"):
            if setting.step_size and role in model_args:
                given = Path(model_args[role]).expanduser()
                names[role] = _relative(given, self.folder) if given.exists() else str(given)
        manifest = dataclasses.replace(
            read_manifest(path) if os.path.lexists(path) else Manifest(),
            latent_steps=config.latent_steps,
            memory_rate=config.memory_rate,
            search_step_size=config.search_step_size,
            search_steps=config.search_steps,
            search_gradient=config.search_gradient,
            tuned_on=f"{run.task.name}, {len(run.task.documents)} documents",
            **names,
        )
        with saving(path):
            return write_manifest(self.folder, manifest)


def _check_arguments(model_args: Mapping[str, Any], write: bool) -> None:
    for name in SWEPT:
        if name in model_args:
            raise LatentRefError(
                f"{name}={model_args[name]}: a sweep chooses this value; give the values to try as "
                "--latent_steps, --memory_rates, --step_sizes or --search_steps"
            )
    pretrained = model_args.get("pretrained")
    if write and not (pretrained and Path(pretrained).expanduser().is_dir()):
        raise LatentRefError(
            f"pretrained={pretrained} is not a local folder, so {MANIFEST_NAME} cannot be written; "
            "save the checkpoint with `latentref convert`, or leave --write out"
        )


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())


def save_sweep(result: Sweep, folder: str | os.PathLike[str], *, command: str) -> dict[str, Any]:
    """Writes sweep.json and, if matplotlib is installed, sweep.png; returns the JSON values."""
    path, content = Path(folder) / SWEEP_RESULTS, sweep_json(result, command=command)
    write_text(path, json.dumps(content, indent=1) + "\n")
    title = f"{result.task.name}, {len(result.task.documents)} documents"
    try:
        with saving(path.with_suffix(".png")):
            plain = result.choice.best["plain"]
            heat_map(result.outcomes, path.with_suffix(".png"), plain=plain, title=title)
    except LatentRefError as error:
        # The results are saved already.
        logger.warning("%s; the same command then draws it without running anything again", error)
    return content


def sweep_json(result: Sweep, *, command: str) -> dict[str, Any]:
    """The sweep as JSON values, with each document's outcome under each setting."""
    choice, task = result.choice, result.task
    return {
        "format": SWEEP,
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "seed": result.seed,
        "model": result.model,
        "task": {
            "name": task.name,
            "version": task.version,
            "free_answers": task.is_free,
            "splits": task.splits,
            "documents": [document.doc_id for document in task.documents],
            "hashes": {document.doc_id: document.doc_hash for document in task.documents},
        },
        "settings": [
            _setting_json(result, outcome, interval)
            for outcome, interval in zip(result.outcomes, result.against_plain, strict=True)
        ],
        "overflowed": {setting.label: num for setting, num in result.overflowed.items()},
        "best": {row: outcome.setting.label for row, outcome in choice.best.items()},
        "recommended": choice.recommended.setting.label,
        "rule": RULE,
        "best_of_all": choice.best_of_all.setting.label,
        "rivals": [
            {**dataclasses.asdict(rival), "setting": rival.setting.label} for rival in choice.rivals
        ],
        "smallest_effect": {
            "accuracy": choice.smallest_accuracy,
            "margin": _finite(choice.smallest_margin),
        },
        "cost": dataclasses.asdict(result.cost),
        "written": result.written is not None,
        "judged": _judged_json(result),
    }


def _judged_json(result: Sweep) -> dict[str, Any] | None:
    if result.judge_task is None:
        return None
    rows = {row: dataclasses.asdict(outcome) for row, outcome in result.judged.items()}
    for row, outcome in result.judged.items():
        rows[row] |= {"label": outcome.setting.label, "correct": [int(x) for x in outcome.correct]}
    return {
        "task": result.judge_task.name,
        "documents": len(result.judge_task.documents),
        "rows": rows,
    }


def _setting_json(result: Sweep, outcome: Outcome, interval: Interval) -> dict[str, Any]:
    plain = result.choice.best["plain"]
    return {
        "label": outcome.setting.label,
        "row": outcome.setting.row,
        "step_size_in_half_d": outcome.setting.step_size,
        **dataclasses.asdict(result.configs[outcome.setting]),
        "accuracy": outcome.accuracy,
        "accuracy_stderr": _finite(outcome.accuracy_error),
        "margin": outcome.margin,
        "margin_stderr": _finite(outcome.margin_error),
        "margin_against_plain": dataclasses.asdict(interval),
        "mcnemar_against_plain": dataclasses.asdict(mcnemar(plain.correct, outcome.correct)),
        "correct": [int(value) for value in outcome.correct],
        "margins": list(outcome.margins),
    }


def last_line(result: Sweep) -> dict[str, Any]:
    """The recommendation as JSON values, for the last line of the command's output."""
    recommended = result.choice.recommended
    return {
        "task": result.task.name,
        "recommended": dataclasses.asdict(result.configs[recommended.setting]),
        "accuracy": recommended.accuracy,
        "margin": recommended.margin,
        "best": {row: outcome.setting.label for row, outcome in result.choice.best.items()},
        "seconds": round(result.cost.seconds, 3),
    }


def _finite(value: float) -> float | None:
    """`value`, or None if it is not finite, because JSON has only finite numbers."""
    return value if math.isfinite(value) else None
