"""All rows of the paper's table on trained sets: baselines, Coconut, and each refinement.

    (study,) = run_studies(["out/s0", "out/s1"], tasks=["latentref_mathqa"], work="out/study")
    study.sets[0].rows["both"].run.accuracy

Settings of the refined rows are chosen by a sweep of each task's dev split; its test split is
evaluated once with each. Finished work is kept in `work`, so the same call continues where an
earlier one stopped. `study_report` makes the tables.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.files import holding, read_yaml
from lm_eval_latentref.checkpoints.history import RECIPE
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, read_manifest
from lm_eval_latentref.checkpoints.packaged import local_folder
from lm_eval_latentref.checkpoints.sets import CheckpointNames, learnt_from, resolve
from lm_eval_latentref.checkpoints.sources import describe
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.compare import Comparison, compare
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.provenance import command
from lm_eval_latentref.evaluation.report import SWEEP_RESULTS
from lm_eval_latentref.evaluation.runs import Runs, StudyRun
from lm_eval_latentref.evaluation.settings import Grid
from lm_eval_latentref.evaluation.sweep import load_model, save_sweep, sweep
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.training.log import TrainingLog, read_training, retrain_command

COCONUT = "Coconut"
BASELINES = {"No-CoT": "no_cot", "CoT": "strong", "pause tokens": "pause"}
"""Rows that are a part of the trained folder, evaluated as it is."""
REFINED = {COCONUT: "plain", "+ residual": "residual", "+ search": "search", "both": "both"}
"""Rows of the set itself, by the sweep's row that gives their settings."""
WRITES_STEPS = ("CoT",)
"""Rows that answer at the end of what they write: candidates are not compared without it."""
WITHOUT_STEPS = ", without its steps"
"""What such a row is called on a task that is itself a choice among candidates."""

MEMORY_RATES = (0.05, 0.1, 0.3)
STEP_SIZES = (-0.1, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class TaskNames:
    """A task of the test split and what goes with it."""

    name: str
    """What the rows are judged by."""

    @property
    def scored(self) -> str | None:
        """Its companion with candidates, where margins come from; None where there is none."""
        companion = f"{self.name}_mc"
        return companion if (tasks_path() / f"{companion}.yaml").is_file() else None

    @property
    def dev(self) -> str:
        """What settings are chosen on."""
        return f"{self.scored or self.name}_dev"


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One row of the table for one trained set."""

    run: StudyRun
    model_args: Mapping[str, Any]
    setting: str | None
    """Of a refined row, in the sweep's words."""
    scored: StudyRun | None
    """By the log-likelihood of candidates; None where that is not asked."""
    against_coconut: Comparison | None = None
    """Of `run`, on the same problems; None for Coconut itself."""
    scored_against: Comparison | None = None
    """Likewise of `scored`."""

    @property
    def choosing(self) -> StudyRun | None:
        """The run that compared candidates, whether that is the task's own or a companion's."""
        return self.scored or (self.run if self.run.margins else None)

    @property
    def choosing_against(self) -> Comparison | None:
        """Of `choosing`, on the same problems; None for Coconut itself."""
        return self.scored_against if self.scored else self.against_coconut


@dataclass(frozen=True, kw_only=True)
class TrainedSet:
    """All rows of one training seed."""

    folder: str
    recipe: Mapping[str, Any]
    """As the training resolved it; empty where the folder has none."""
    trained_on: tuple[str, ...]
    """As latentref.json says."""
    rows: Mapping[str, StudyRow]
    sweep: Mapping[str, Any]
    """The contents of sweep.json, the single documents left out."""
    heat_map: Path
    """The sweep's figure; drawn where matplotlib is installed."""
    contrast_sweeps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Likewise of each row with references of its own."""
    weights_file: str | None = None
    """The GGUF file of the base, where it comes from one."""
    trainings: Mapping[str, TrainingLog] = field(default_factory=dict)
    """The training records of the folder, and of each baseline that was trained separately."""
    train_commands: Sequence[str] = ()
    """What repeats them."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study of one task."""

    task: str
    dev_task: str
    sets: tuple[TrainedSet, ...]
    seed: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all sets and tasks of a study share."""

    latent_steps: int | None = None
    """Thoughts of the Coconut rows; default: what latentref.json says."""
    memory_rates: Sequence[float] = MEMORY_RATES
    step_sizes: Sequence[float] = STEP_SIZES
    """The sweep's grid, step sizes in units of d/2."""
    batch_size: int = 100
    device: str | None = None
    """None for the GPU when there is one."""
    dtype: str | None = None
    """Of the models; None for the checkpoint's own."""
    limit: int | None = None
    """The first so many documents of each test."""
    dev_limit: int | None = None
    """The first so many documents of each sweep; None for `limit`."""
    contrasts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """More rows of search alone, by name, each with its own strong and weak: a part of the set,
    "." for the set itself, or a checkpoint. A control has a reference known to think better."""
    margins: bool = True
    """Whether a generation task's candidates are scored too, which takes as long again."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def loading(self) -> dict[str, Any]:
        """As model arguments of every row."""
        return {} if self.dtype is None else {"dtype": self.dtype}


def run_studies(
    folders: Sequence[str], *, tasks: Sequence[str], work: str, **options: Any
) -> list[Study]:
    """Evaluates each trained folder, one per training seed, by all rows; a study for each task.

    Args:
        tasks: generation tasks, whose `_mc` companions give margins, or tasks with candidates;
            each has a `_dev` companion.
        work: folder for sweeps and logged samples.
        options: fields of `Options`.

    Raises:
        LatentRefError: a folder or task is not there or cannot be evaluated, or another process
            works in `work`.
    """
    given = Options(**options)
    names = [TaskNames(task) for task in tasks]
    _check_apart("task", tasks)
    _check_apart("folder", [Path(folder).name for folder in folders])
    for task in names:
        _check_dev_task(task)
    _check_contrasts(given)
    places = [(folder, Path(work) / Path(folder).name) for folder in folders]
    with holding(work, "latentref study"):
        of_sets = [_SetStudy(folder, place, names, given).all_tasks() for folder, place in places]
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


def run_study(folders: Sequence[str], *, task: str, work: str, **options: Any) -> Study:
    """`run_studies` for one task."""
    (study,) = run_studies(folders, tasks=[task], work=work, **options)
    return study


def _check_apart(what: str, names: Sequence[str]) -> None:
    """Each set and task has a folder of its name in `work`: two of a name would be one."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LatentRefError(
            f"{what} {twice[0]} is given twice, and what is done is kept by that name; give each "
            "once, and study sets in folders of the same name one by one, each with its own --work"
        )


def _check_dev_task(task: TaskNames) -> None:
    if not (tasks_path() / f"{task.dev}.yaml").is_file():
        raise LatentRefError(
            f"task={task.name}: there is no {task.dev} to choose settings on; give the test task "
            "of a benchmark, such as latentref_mathqa"
        )


def _check_contrasts(options: Options) -> None:
    """Each has a row, and a folder in `work`, of its name; its sweep needs a step to choose."""
    taken = {*BASELINES, *BASELINES.values(), *REFINED, *REFINED.values(), "sweep"}
    for name in options.contrasts:
        if name in taken or not re.fullmatch(r"[\w-]+", name):
            raise LatentRefError(
                f"contrast {name!r}: give it a name of letters, digits, - and _ that no other row "
                "has, such as control"
            )
    if options.contrasts and not any(options.step_sizes):
        raise LatentRefError(
            "a contrast is a row of search, and all step sizes are 0; give --step_sizes others"
        )


@dataclass
class _SetStudy:
    """One trained folder under all rows and tasks; each of its models is loaded once."""

    folder: str
    work: Path
    tasks: Sequence[TaskNames]
    options: Options
    _model: SweepModel | None = field(default=None, init=False)

    def all_tasks(self) -> dict[TaskNames, TrainedSet]:
        root = local_folder(self.folder)
        if root is None or not (root / MANIFEST_NAME).is_file():
            raise LatentRefError(
                f"{self.folder}: no latentref.json there; give a folder that `latentref train` "
                "wrote, or the name of a packaged set"
            )
        manifest, trainings = read_manifest(root / MANIFEST_NAME), self._trainings()
        self._check_unseen()
        swept = {task: self._sweep(task, manifest) for task in self.tasks}
        contrasts: dict[TaskNames, dict[str, Any]] = {task: {} for task in self.tasks}
        for name in self.options.contrasts:
            self._model = None  # it has other references
            for task in self.tasks:
                contrasts[task][name] = self._sweep(task, manifest, contrast=name)
        self._model = None  # its memory is for the rows
        runs: dict[TaskNames, dict[str, StudyRow]] = {task: {} for task in self.tasks}
        evaluations = Runs(
            batch_size=self.options.batch_size,
            device=self.options.device,
            limit=self.options.limit,
        )
        # Rows outside, tasks inside: neighbours share a model.
        for name, part, by_task in self._rows(swept, contrasts):
            for task, (args, label) in by_task.items():
                folder = self.work / part
                run = evaluations.evaluate(args, task=task.name, folder=folder / task.name)
                scored = None
                if self.options.margins and task.scored and name not in WRITES_STEPS:
                    place = folder / task.scored
                    scored = evaluations.evaluate(args, task=task.scored, folder=place)
                as_run = f"{name}{WITHOUT_STEPS}" if name in WRITES_STEPS and run.margins else name
                runs[task][as_run] = StudyRow(
                    run=run, model_args=args, setting=label, scored=scored
                )
        return {
            task: TrainedSet(
                folder=self.folder,
                recipe=_recipe(root),
                trained_on=tuple(manifest.trained_on or ()),
                rows=_compared(runs[task], seed=self.options.seed),
                sweep=_short(swept[task]),
                contrast_sweeps={name: _short(one) for name, one in contrasts[task].items()},
                heat_map=(self._sweep_folder(task) / SWEEP_RESULTS).with_suffix(".png"),
                weights_file=_weights_file(self.folder),
                trainings=trainings,
                train_commands=self._train_commands(trainings),
            )
            for task in self.tasks
        }

    def _trainings(self) -> dict[str, TrainingLog]:
        names = [self.folder, *(f"{self.folder}/{part}" for part in BASELINES.values())]
        places = {name: place for name in names if (place := local_folder(name))}
        logs = {name: read_training(str(place)) for name, place in places.items()}
        return {name: log for name, log in logs.items() if log is not None}

    def _train_commands(self, trainings: Iterable[str]) -> list[str]:
        # The folder's recipe says how it was trained, even without a log.
        names = dict.fromkeys([self.folder, *trainings])
        commands = [retrain_command(str(local_folder(name))) for name in names]
        return [command for command in commands if command is not None]

    def _check_unseen(self) -> None:
        """Raises LatentRefError if the set was trained on documents that its rows answer."""
        splits, questions = learnt_from(resolve(CheckpointNames(pretrained=self.folder)))
        limit = self.options.limit
        for task in self.tasks:
            load_task(task.name, limit=limit, trained_on=splits, trained_questions=questions)

    def _rows(
        self,
        swept: Mapping[TaskNames, Mapping[str, Any]],
        contrasts: Mapping[TaskNames, Mapping[str, Mapping[str, Any]]],
    ) -> Iterator[tuple[str, str, dict[TaskNames, tuple[dict[str, Any], str | None]]]]:
        """Each row's name, folder of results, and model arguments and setting by task."""
        loading = self.options.loading
        for name, part in BASELINES.items():
            if local_folder(f"{self.folder}/{part}"):
                args = {"pretrained": f"{self.folder}/{part}", **loading}
                yield name, part, {task: (args, None) for task in swept}
        for name, key in REFINED.items():
            by_task = {}
            for task, content in swept.items():
                if key in content["best"]:
                    setting = _setting(content, content["best"][key])
                    args = {"pretrained": self.folder, **loading, **_arguments(setting)}
                    by_task[task] = args, setting["label"]
            yield name, key, by_task
        for name in self.options.contrasts:
            by_task = {}
            for task, by_name in contrasts.items():
                setting = _setting(by_name[name], by_name[name]["best"]["search"])
                args = {**self._names(name), **loading, **_arguments(setting)}
                by_task[task] = args, setting["label"]
            yield name, name, by_task

    def _names(self, contrast: str | None) -> dict[str, Any]:
        """The checkpoints of a row, as model arguments."""
        if contrast is None:
            return {"pretrained": self.folder}
        strong, weak = map(self._part, self.options.contrasts[contrast])
        return {"pretrained": self.folder, "strong": strong, "weak": weak}

    def _part(self, name: str) -> str:
        """A reference's name: a part of the set before anything else of that name."""
        if name == ".":
            return self.folder
        part = f"{self.folder}/{name}"
        return part if local_folder(part) else name

    def _sweep_folder(self, task: TaskNames, contrast: str | None = None) -> Path:
        return self.work / "sweep" / (f"{task.dev}-{contrast}" if contrast else task.dev)

    def _sweep(
        self, task: TaskNames, manifest: Manifest, *, contrast: str | None = None
    ) -> dict[str, Any]:
        """The contents of sweep.json; of a contrast, the grid without residual mixing."""
        # The journal makes this quick when it was done before.
        options, work = self.options, self._sweep_folder(task, contrast)
        args = {**self._names(contrast), "batch_size": options.batch_size}
        args |= options.loading | ({"device": options.device} if options.device else {})
        steps = manifest.latent_steps if options.latent_steps is None else options.latent_steps
        grid = Grid(
            latent_steps=(steps or 0,),
            memory_rates=(0.0,) if contrast else tuple(options.memory_rates),
            step_sizes=tuple(options.step_sizes),
        )
        if self._model is None and steps:
            self._model = load_model(args, grid)
        result = sweep(
            args,
            task=task.dev,
            output=str(work),
            latent_steps=grid.latent_steps,
            memory_rates=grid.memory_rates,
            step_sizes=grid.step_sizes,
            limit=options.limit if options.dev_limit is None else options.dev_limit,
            seed=options.seed,
            model=self._model,
        )
        return save_sweep(result, work, command=command())


def _compared(rows: Mapping[str, StudyRow], *, seed: int) -> dict[str, StudyRow]:
    """All rows, those beside Coconut's with what they are against it."""
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


def _weights_file(folder: str) -> str | None:
    base = describe(resolve(CheckpointNames(pretrained=folder)).backbone)
    return f"{base['base']}/{base['gguf_file']}" if "gguf_file" in base else None


def _setting(swept: Mapping[str, Any], label: str) -> dict[str, Any]:
    settings: Iterable[dict[str, Any]] = swept["settings"]
    return next(setting for setting in settings if setting["label"] == label)


def _arguments(setting: Mapping[str, Any]) -> dict[str, Any]:
    """As model arguments; all are given, so that what latentref.json recommends does not count."""
    names = ("latent_steps", "memory_rate", "search_step_size", "search_steps")
    return {name: setting[name] for name in names}


def _short(swept: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("correct", "margins")
    settings = [
        {name: value for name, value in setting.items() if name not in left_out}
        for setting in swept["settings"]
    ]
    names = ("best", "recommended", "rule", "best_of_all", "rivals", "smallest_effect", "cost")
    task = swept["task"]
    facts = {"problems": len(task["documents"]), "free_answers": task["free_answers"]}
    return {**{name: swept[name] for name in names}, **facts, "settings": settings}


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    if not path.is_file():
        return {}
    content = read_yaml(path)
    content.pop("output", None)  # where it was made decides nothing
    if Path(content.get("pretrained") or "").is_absolute():
        content["pretrained"] = Path(content["pretrained"]).name
    return content
