"""Evaluates trained sets in all rows of the paper's table: baselines, Coconut, each refinement.

    (study,) = run_studies(["out/s0", "out/s1"], tasks=["latentref_mathqa"], work="out/study")
    study.sets[0].rows["both"].run.accuracy

A sweep on each task's dev split chooses the settings of the refined rows, and the test split is
evaluated once with each chosen setting. Finished work is kept in `work`, so the same call continues
where an earlier call stopped. `study_report` makes the tables.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest
from lm_eval_latentref.checkpoints.packaged import local_folder
from lm_eval_latentref.checkpoints.sets import CheckpointNames, SetPlan, learnt_from, resolve
from lm_eval_latentref.checkpoints.sources import describe
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.compare import Comparison, compare
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.provenance import command
from lm_eval_latentref.evaluation.report import SWEEP_RESULTS
from lm_eval_latentref.evaluation.runs import Runs, StudyRun
from lm_eval_latentref.evaluation.settings import Grid
from lm_eval_latentref.evaluation.study_options import (
    COCONUT,
    STEP_SIZES,
    WITHOUT_STEPS,
    WRITES_STEPS,
    Options,
    TaskNames,
    check_dev_task,
    check_distinct,
    check_rows,
)
from lm_eval_latentref.evaluation.study_sets import SetPlace, distinct_names, manifest_of
from lm_eval_latentref.evaluation.sweep import Sweep, load_model, save_sweep, sweep
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.evaluation.sweep_run import SWEPT
from lm_eval_latentref.training.log import TrainingLog, read_training, retrain_command


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One row of the table for one trained set."""

    run: StudyRun
    model_args: Mapping[str, Any]
    setting: str | None
    """The label of the row's setting in the sweep; None for a row that is not refined."""
    scored: StudyRun | None
    """The run on the companion task with candidates; None without such a task or `margins`."""
    against_coconut: Comparison | None = None
    """`run` compared with Coconut's `run` on the same problems; None for Coconut itself."""
    scored_against: Comparison | None = None
    """`scored` compared with Coconut's `scored`."""

    @property
    def candidates_run(self) -> StudyRun | None:
        """The run that scored candidates: `scored`, or `run` if its own task has candidates."""
        return self.scored or (self.run if self.run.margins else None)

    @property
    def candidates_against(self) -> Comparison | None:
        """`candidates_run` compared with Coconut's; None for Coconut itself."""
        return self.scored_against if self.scored else self.against_coconut


@dataclass(frozen=True, kw_only=True)
class TrainedSet:
    """All rows of one training seed."""

    folder: str
    epoch: str | None
    """The name of the epoch that its training kept; None for a finished set."""
    recipe: Mapping[str, Any]
    """The content of the training's recipe.yaml; empty if there is no such file."""
    trained_on: tuple[str, ...]
    """The splits that latentref.json names."""
    rows: Mapping[str, StudyRow]
    sweep: Sweep
    heat_map: Path
    """The sweep's figure; the file exists if matplotlib is installed."""
    contrast_sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    """The sweeps of contrasts (rows with references of their own), by row."""
    weights_file: str | None = None
    """The GGUF file of the base, if it comes from one."""
    trainings: Mapping[str, TrainingLog] = field(default_factory=dict)
    """The training records of the set and of separately trained baselines, by folder."""
    train_commands: Sequence[str] = ()
    """The commands that repeat these trainings."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study of one task."""

    task: str
    dev_task: str
    sets: tuple[TrainedSet, ...]
    seed: int
    batch_size: int


def run_studies(
    folders: Sequence[str], *, tasks: Sequence[str], work: str, **options: Any
) -> list[Study]:
    """Evaluates the trained folders in all rows; returns a study for each task.

    Args:
        folders: trained sets of the same recipe, one for each seed, or the same kept epoch of each.
        tasks: generation tasks, whose `_mc` companions give margins, or tasks with candidates.
            Settings are chosen on their `_dev` companions.
        work: folder for sweeps and logged samples.
        options: fields of `Options`.

    Raises:
        LatentRefError: a folder or task does not exist or cannot be evaluated, or another process
            works in `work`.
    """
    given = Options(**options)
    names = [TaskNames(task) for task in tasks]
    check_distinct("task", tasks)
    places = [
        (folder, Path(work) / name)
        for folder, name in zip(folders, distinct_names(folders), strict=True)
    ]
    for task in names:
        check_dev_task(task)
    check_rows(given)
    studies = [_SetStudy(folder, place, names, given) for folder, place in places]
    with holding(work, "latentref study"):
        for study in studies:
            study.check()
        of_sets = [study.all_tasks() for study in studies]
    return [
        Study(
            task=task.name,
            dev_task=task.dev,
            sets=tuple(by_task[task] for by_task in of_sets),
            seed=given.seed,
            batch_size=given.batch_size,
        )
        for task in names
    ]


@dataclass
class _SetStudy:
    """The study of one trained folder, whose names are resolved and models loaded once."""

    folder: str
    work: Path
    tasks: Sequence[TaskNames]
    options: Options
    _model: SweepModel | None = field(default=None, init=False)
    _plans: dict[str | None, SetPlan] = field(default_factory=dict, init=False)

    @functools.cached_property
    def _place(self) -> SetPlace:
        return SetPlace(self.folder)

    def _plan(self, contrast: str | None = None) -> SetPlan:
        """The checkpoints of the set, or of a contrast."""
        if contrast not in self._plans:
            self._plans[contrast] = resolve(CheckpointNames.of(self._names(contrast)))
        return self._plans[contrast]

    def check(self) -> None:
        """Raises LatentRefError if the set or a checkpoint of a further row does not exist."""
        root = local_folder(self.folder)
        if root is None or not (root / MANIFEST_NAME).is_file():
            raise LatentRefError(
                f"{self.folder} has no latentref.json; give a folder that `latentref train` wrote, "
                "or the name of a packaged set"
            )
        for contrast in (None, *self.options.contrasts):
            self._plan(contrast)
        for checkpoint in self.options.checkpoints.values():
            resolve(CheckpointNames(pretrained=self._place.part(checkpoint)))

    def all_tasks(self) -> dict[TaskNames, TrainedSet]:
        """Runs every row on every task; returns the results by task."""
        manifest, trainings = manifest_of(self.folder), self._trainings()
        self._check_unseen()
        swept = {task: self._sweep(task, manifest) for task in self.tasks}
        contrasts: dict[TaskNames, dict[str, Sweep]] = {task: {} for task in self.tasks}
        for name in self.options.contrasts:
            self._model = None  # this contrast needs other references
            for task in self.tasks:
                contrasts[task][name] = self._sweep(task, manifest, contrast=name)
        self._model = None  # frees memory for the rows
        runs = self._runs(swept, contrasts)
        return {
            task: TrainedSet(
                folder=self.folder,
                epoch=self._place.epoch,
                recipe=self._place.recipe(),
                trained_on=tuple(manifest.trained_on or ()),
                rows=_compared(runs[task], seed=self.options.seed),
                sweep=swept[task],
                contrast_sweeps=contrasts[task],
                heat_map=(self._sweep_folder(task) / SWEEP_RESULTS).with_suffix(".png"),
                weights_file=_weights_file(self._plan()),
                trainings=trainings,
                train_commands=self._train_commands(trainings),
            )
            for task in self.tasks
        }

    def _runs(
        self,
        swept: Mapping[TaskNames, Sweep],
        contrasts: Mapping[TaskNames, Mapping[str, Sweep]],
    ) -> dict[TaskNames, dict[str, StudyRow]]:
        """Evaluates all rows; rows with the same arguments are evaluated once."""
        runs: dict[TaskNames, dict[str, StudyRow]] = {task: {} for task in self.tasks}
        evaluations = Runs(
            batch_size=self.options.batch_size,
            device=self.options.device,
            limit=self.options.limit,
            plans=self._plans.values(),
        )
        # The tasks of a row are evaluated one after another, because they share its model.
        for name, part, by_task in self._rows(swept, contrasts):
            for task, (args, label) in by_task.items():
                rows, writes = runs[task], self._writes_steps(name, args)
                same = [row for row in rows.values() if row.model_args == args]
                row = same[0] if same else self._row(evaluations, task, part, args, label, writes)
                rows[f"{name}{WITHOUT_STEPS if writes and row.run.margins else ''}"] = row
        return runs

    def _row(
        self,
        evaluations: Runs,
        task: TaskNames,
        part: str,
        args: Mapping[str, Any],
        label: str | None,
        writes_steps: bool,
    ) -> StudyRow:
        folder = self.work / part
        run = evaluations.evaluate(args, task=task.name, folder=folder / task.name)
        scored = None
        if self.options.margins and task.scored and not writes_steps:
            scored = evaluations.evaluate(args, task=task.scored, folder=folder / task.scored)
        return StudyRow(run=run, model_args=args, setting=label, scored=scored)

    def _writes_steps(self, name: str, args: Mapping[str, Any]) -> bool:
        """Whether a row of another model writes steps before its answer."""
        if name in WRITES_STEPS:
            return True
        return name in self.options.checkpoints and bool(
            manifest_of(str(args["pretrained"])).writes_steps
        )

    def _trainings(self) -> dict[str, TrainingLog]:
        root = self._place.root
        names = [root, *(checkpoint for checkpoint, _ in self._place.baselines().values())]
        places = {name: place for name in names if (place := local_folder(name))}
        logs = {name: read_training(str(place)) for name, place in places.items()}
        return {name: log for name, log in logs.items() if log is not None}

    def _train_commands(self, trainings: Iterable[str]) -> list[str]:
        # The folder itself is included even if it has a recipe but no log.
        names = dict.fromkeys([self._place.root, *trainings])
        commands = [retrain_command(str(local_folder(name))) for name in names]
        return [command for command in commands if command is not None]

    def _check_unseen(self) -> None:
        """Raises LatentRefError if the set was trained on test documents of the tasks."""
        splits, questions = learnt_from(self._plan())
        limit = self.options.limit
        for task in self.tasks:
            load_task(task.name, limit=limit, trained_on=splits, trained_questions=questions)

    def _rows(
        self,
        swept: Mapping[TaskNames, Sweep],
        contrasts: Mapping[TaskNames, Mapping[str, Sweep]],
    ) -> Iterator[tuple[str, str, dict[TaskNames, tuple[dict[str, Any], str | None]]]]:
        """Yields for each row its name, its results folder, and by task its arguments and label."""
        loading = self.options.loading
        others = self._place.baselines()
        others |= {
            name: (self._place.part(checkpoint), name)
            for name, checkpoint in self.options.checkpoints.items()
        }
        for name, (checkpoint, part) in others.items():
            args = {"pretrained": checkpoint, **loading}
            yield name, part, {task: (args, None) for task in swept}
        for name, key in self.options.refined.items():
            chosen = {task: self._chosen(result, key) for task, result in swept.items()}
            yield name, key, {task: pair for task, pair in chosen.items() if pair}
        for name in self.options.contrasts:
            chosen = {
                task: self._chosen(sweeps[name], "search", name)
                for task, sweeps in contrasts.items()
            }
            yield name, name, {task: pair for task, pair in chosen.items() if pair}

    def _chosen(
        self, result: Sweep, row: str, contrast: str | None = None
    ) -> tuple[dict[str, Any], str | None] | None:
        """The model arguments and label of the best setting of `row`; None if it has no setting."""
        if (setting := result.choice.settings.get(row)) is None:
            return None
        config = result.configs[setting]
        # All options are given, so that the settings in latentref.json have no effect.
        settings = {option: getattr(config, option) for option in SWEPT}
        names = self._names(contrast, searches=config.searches)
        return {**names, **self.options.loading, **settings}, setting.label

    def _names(self, contrast: str | None, *, searches: bool = True) -> dict[str, Any]:
        """The checkpoints of a row, as model arguments."""
        if contrast is not None:
            strong, weak = map(self._place.part, self.options.contrasts[contrast])
            return {"pretrained": self.folder, "strong": strong, "weak": weak}
        return {"pretrained": self.folder, **(self._place.references() if searches else {})}

    def _sweep_folder(self, task: TaskNames, contrast: str | None = None) -> Path:
        return self.work / "sweep" / (f"{task.dev}-{contrast}" if contrast else task.dev)

    def _sweep(self, task: TaskNames, manifest: Manifest, *, contrast: str | None = None) -> Sweep:
        """The sweep of a task. For a contrast, it has no residual mixing."""
        # If the sweep was done before, everything is read from its journal.
        options, work = self.options, self._sweep_folder(task, contrast)
        args = {**self._names(contrast), "batch_size": options.batch_size}
        args |= options.loading | ({"device": options.device} if options.device else {})
        steps = manifest.latent_steps if options.latent_steps is None else options.latent_steps
        plan, sizes = self._plan(contrast), options.step_sizes
        if sizes is None:
            sizes = STEP_SIZES if plan.strong and plan.weak else (0.0,)
        grid = Grid(
            latent_steps=(steps or 0,),
            memory_rates=(0.0,) if contrast else tuple(options.memory_rates),
            step_sizes=tuple(sizes),
        )
        if self._model is None and steps:
            self._model = load_model(args, grid, plan)
        result = sweep(
            args,
            task=task.dev,
            output=str(work),
            latent_steps=grid.latent_steps,
            memory_rates=grid.memory_rates,
            step_sizes=grid.step_sizes,
            limit=options.limit if options.dev_limit is None else options.dev_limit,
            seed=options.seed,
            plan=plan,
            model=self._model,
        )
        save_sweep(result, work, command=command())
        return result


def _compared(rows: Mapping[str, StudyRow], *, seed: int) -> dict[str, StudyRow]:
    """The rows with their comparisons with Coconut."""
    coconut = rows[COCONUT]
    return {
        name: row if name == COCONUT else _against(coconut, row, seed) for name, row in rows.items()
    }


def _against(coconut: StudyRow, row: StudyRow, seed: int) -> StudyRow:
    (against,) = compare(coconut.run.answers, row.run.answers, seed=seed)
    scored = None
    if row.scored and coconut.scored:
        (scored,) = compare(coconut.scored.answers, row.scored.answers, seed=seed)
    return dataclasses.replace(row, against_coconut=against, scored_against=scored)


def _weights_file(plan: SetPlan) -> str | None:
    base = describe(plan.backbone)
    return f"{base['base']}/{base['gguf_file']}" if "gguf_file" in base else None
