"""Reads the results and samples that lm-eval wrote for any model.

    results = read_results(["results/", "other/run.json"])
    for run in results.runs:
        run.tasks["mathqa"].scores["acc,none"].value
        run.tasks["mathqa"].columns["none"].values["acc"]      # one number per document
    for problem in results.problems:
        print(problem)                                         # a file that was left out, and why

It reads results of lm-eval 0.4.8 up to its current main branch, with or without samples, of one or
several processes. Files are recognised by their content. A samples file is assigned to its run by
lm-eval's hash of the samples, by the date and task in its name, and by the means of its scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.checkpoints.files import read_json_object, reading
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.samples import SAMPLES_NAME, Column, Samples, read_samples

BOARD_FORMAT = "lm-eval-latentref leaderboard"
"""The beginning of `format` in a leaderboard's JSON; a version number follows."""
_SUFFIXES = (".json", ".jsonl")
_ENVIRONMENT = {
    "torch": re.compile(r"^PyTorch version: (.+)$", re.MULTILINE),
    "cpu": re.compile(r"^Model name: (.+)$", re.MULTILINE),
}
"""Lines of torch.utils.collect_env, whose output lm-eval records."""
_RESULTS_NAME = re.compile(r"results_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.json")
_PROMPTING = ("chat_template", "system_instruction", "fewshot_as_multiturn")
_MOST = 1e150  # the square of a larger number is infinite
_TOLERANCE = 1e-6  # of a mean of samples, against lm-eval's own


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of one task."""

    value: float
    stderr: float | None
    """None if lm-eval recorded "N/A"."""
    higher_is_better: bool | None
    """None if the task does not say so."""


@dataclass(kw_only=True)
class Task:
    """The results of one task, or of a group of tasks."""

    name: str
    version: Any
    num_fewshot: int | None
    num_documents: int | None
    num_available: int | None
    """The number of documents without a limit."""
    scores: dict[str, Score]
    """Scores by lm-eval's name of metric and filter, such as "acc,none"."""
    chance: float | None
    """The score of guessing, by the task's metadata or number of candidates; None if unknown."""
    config: Mapping[str, Any]
    """The task's configuration as lm-eval records it."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """Samples by filter; empty if none were logged."""
    samples_file: Path | None = None

    def paired(self, metric: str) -> bool:
        """Whether the score is the mean of one number per document in the samples.

        Other metrics (F1, BLEU, perplexity) have a value only for all documents together.

        Args:
            metric: such as "acc,none".
        """
        name, _, filter_name = metric.partition(",")
        column = self.columns.get(filter_name)
        if column is None or name not in column.values or metric not in self.scores:
            return False
        value = self.scores[metric].value
        return bool(abs(column.values[name].mean() - value) <= _TOLERANCE * max(1.0, abs(value)))


@dataclass(kw_only=True)
class Run:
    """One results file and the samples that belong to it."""

    file: Path
    name: str
    """lm-eval's `model_name`: a hub id, a path or another name."""
    model: str
    """lm-eval's name of the model class: hf, vllm, latentref, ..."""
    tasks: dict[str, Task]
    groups: dict[str, Task]
    """Averages over tasks, which are in `tasks` as well."""
    config: Mapping[str, Any]
    """lm-eval's record of model_args, limit, seeds, dtype, device, ..."""
    date: float | None
    """Seconds since 1970."""
    versions: Mapping[str, str]
    """The versions of lm-eval, transformers and torch, and the `cpu`, if they are recorded."""
    seconds: float | None
    """The time of the whole evaluation, including loading."""
    task_hashes: Mapping[str, str]
    """lm-eval's hash of the samples of each task."""
    environment: str
    """The machine, as described by torch.utils.collect_env."""
    prompting: Mapping[str, Any]
    """`chat_template`, `system_instruction` and `fewshot_as_multiturn`, as lm-eval records them."""

    @property
    def device(self) -> str | None:
        """The device given to lm-eval; "cpu" if that was a GPU but the machine had none."""
        device = self.config.get("device")
        if "Is CUDA available: False" in self.environment and str(device).startswith("cuda"):
            return "cpu"
        return None if device is None else str(device)

    @property
    def dtype(self) -> str | None:
        """The dtype of the weights, such as "float32"; None if it is not recorded."""
        dtype = self.settings.get("dtype") or self.config.get("model_dtype")
        return str(dtype).removeprefix("torch.") if dtype else None

    @property
    def model_args(self) -> dict[str, Any]:
        """The model arguments; lm-eval before 0.4.10 records them as text."""
        args = self.config.get("model_args")
        if isinstance(args, Mapping):
            return dict(args)
        pairs = (pair.partition("=") for pair in str(args or "").split(",") if pair)
        return {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that this package's model recorded; empty for other models."""
        settings = self.config.get("latentref")
        return settings if isinstance(settings, Mapping) else {}

    @property
    def limit(self) -> float | None:
        limit = self.config.get("limit")
        return float(limit) if isinstance(limit, int | float) else None


@dataclass(frozen=True)
class Problem:
    """A file that was left out."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return self.reason if str(self.path) in self.reason else f"{self.path}: {self.reason}"


@dataclass
class Results:
    """The runs in some files and folders."""

    runs: list[Run] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """The files that were left out."""


def read_results(paths: Iterable[str | Path], *, samples: bool = True) -> Results:
    """The runs in `paths` (files, and folders with their subfolders), sorted by file name.

    Args:
        samples: whether logged samples are read as well.
    """
    results = Results()
    logged: list[Samples] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        place = path.expanduser()
        if not (place.is_file() or place.is_dir()):  # for example a pipe
            results.problems.append(Problem(path, "no such file or folder"))
    for file in (file for path in paths for file in result_files(Path(path).expanduser())):
        if (resolved := file.resolve()) in seen:
            continue
        seen.add(resolved)
        try:
            if _holds_samples(file):
                logged += [read_samples(file)] if samples else []
            else:
                results.runs.append(read_run(file))
        except LatentRefError as error:
            results.problems.append(Problem(file, str(error)))
    for samples_file in logged:
        try:
            _join(samples_file, results.runs)
        except LatentRefError as error:
            results.problems.append(Problem(samples_file.file, str(error)))
    return results


def read_run(file: Path) -> Run:
    """The run of a results file, without its samples; raises LatentRefError for any other file."""
    content = read_json_object(
        file, advice="it is incomplete or not a results file of lm-eval: run it again"
    )
    if not isinstance(content.get("results"), dict) or not isinstance(content.get("config"), dict):
        raise LatentRefError(f"{file} holds no results of lm-eval; give what --output_path wrote")
    try:
        return _run(file, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LatentRefError(
            f"{file}: damaged results of lm-eval ({type(error).__name__} {error}); run it again"
        ) from error


def _run(file: Path, content: dict[str, Any]) -> Run:
    names = content.get("group_subtasks") or {}
    groups = {*(content.get("groups") or {}), *(name for name, tasks in names.items() if tasks)}
    tasks = {name: _task(name, content) for name in content["results"]}
    seconds = content.get("total_evaluation_time_seconds")
    versions = {
        name.removesuffix("_version").replace("_", "-"): str(value)
        for name, value in content.items()
        if name.endswith("_version") and value
    }
    for name, pattern in _ENVIRONMENT.items():
        if recorded := pattern.search(str(content.get("pretty_env_info"))):
            versions[name] = recorded[1].strip()
    return Run(
        file=file,
        name=str(content.get("model_name") or file.parent.name),
        model=str(content.get("model_source") or content["config"].get("model") or ""),
        tasks={name: task for name, task in tasks.items() if name not in groups and task.scores},
        groups={name: task for name, task in tasks.items() if name in groups and task.scores},
        config=content["config"],
        date=_number(content.get("date")),
        versions=versions,
        seconds=_number(float(seconds)) if isinstance(seconds, int | float | str) else None,
        task_hashes=dict(content.get("task_hashes") or {}),
        environment=str(content.get("pretty_env_info") or ""),
        prompting={name: content.get(name) for name in _PROMPTING},
    )


def _task(name: str, content: Mapping[str, Any]) -> Task:
    recorded: dict[str, Any] = content["results"][name]
    better = (content.get("higher_is_better") or {}).get(name) or {}
    config = (content.get("configs") or {}).get(name) or {}
    counts = (content.get("n-samples") or {}).get(name) or {}
    scores = {}
    for key, value in recorded.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or _number(value) is None:
            continue
        stderr = _number(recorded.get(f"{metric}_stderr,{filter_name}"))
        scores[key] = Score(
            value=float(value),
            stderr=stderr,
            higher_is_better=better.get(metric),
        )
    return Task(
        name=name,
        version=(content.get("versions") or {}).get(name),
        num_fewshot=_count((content.get("n-shot") or {}).get(name)),
        num_documents=_count(counts.get("effective")),
        num_available=_count(counts.get("original")),
        scores=scores,
        chance=_number((config.get("metadata") or {}).get("chance")),
        config=config,
    )


def _join(samples: Samples, runs: Sequence[Run]) -> None:
    """Adds samples to their task; raises LatentRefError if several tasks are possible."""
    near = [run for run in runs if run.file.parent == samples.file.parent] or runs
    owners = [(run, task) for run in near for task in run.tasks.values()]
    named = SAMPLES_NAME.fullmatch(samples.file.name)
    narrower = [
        lambda run, task: run.task_hashes.get(task.name) == samples.task_hash,
        lambda run, task: named is not None and named["date"] in run.file.name,
        lambda run, task: named is not None and named["task"] == task.name,
        lambda run, task: task.samples_file is None and _adds_up(samples, task),
    ]
    for fits in narrower:
        # A test that no task passes is ignored: files may be renamed, old files have no hashes.
        owners = [owner for owner in owners if fits(*owner)] or owners
    if len(owners) != 1 or not any(fits(*owners[0]) for fits in narrower):
        raise LatentRefError(
            f"{samples.file}: the task of these samples is not certain; keep the file beside its "
            "results file, under the name that lm-eval gave it"
        )
    _, task = owners[0]
    for name, column in samples.columns.items():
        if task.num_documents is not None and len(column.doc_ids) != task.num_documents:
            raise LatentRefError(
                f"{samples.file} holds {len(column.doc_ids)} of {task.num_documents} documents "
                f"(filter {name}), so it is incomplete; run it again"
            )
    task.columns, task.samples_file = samples.columns, samples.file
    if task.chance is None:
        task.chance = _chance_of_choices(task)


def _adds_up(samples: Samples, task: Task) -> bool:
    """Whether a score of the task is the mean of the samples' values."""
    shared = [
        (column.values[metric], task.scores[f"{metric},{name}"].value)
        for name, column in samples.columns.items()
        for metric in column.values
        if f"{metric},{name}" in task.scores
    ]
    return bool(shared) and any(abs(v.mean() - score) <= _TOLERANCE for v, score in shared)


def _chance_of_choices(task: Task) -> float | None:
    """The mean over documents of 1 / (number of candidates); None unless the task is a choice."""
    if task.config.get("output_type") != "multiple_choice" or task.config.get("process_results"):
        return None
    num_N = next(iter(task.columns.values())).num_requests
    return float((1.0 / num_N).mean()) if np.all(num_N > 1) else None


def result_files(path: Path) -> list[Path]:
    """The files at or below `path` that may be results or samples; empty if it does not exist.

    If `path` is a results file with lm-eval's name for it, its samples are included. Leaderboards
    that were written into a folder of results are left out.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        return [file for file in files if not _is_board(file)]
    named = _RESULTS_NAME.fullmatch(path.name)
    beside = sorted(path.parent.glob(f"samples_*_{named['date']}.jsonl")) if named else []
    return [path, *beside] if path.is_file() else []


def _is_board(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            return BOARD_FORMAT.encode() in content.read(200)
    except OSError:
        return False  # reading the file reports the error


def _holds_samples(file: Path) -> bool:
    """Whether the first line is a sample. In a results file, it is "{" or the whole file."""
    with reading(file), file.open("rb") as lines:
        line = lines.readline()
    if not line:
        raise LatentRefError(f"{file} is empty; run the evaluation again")
    try:
        return isinstance(sample := json.loads(line), dict) and "doc_id" in sample
    except (ValueError, RecursionError):
        return b'"doc_id"' in line


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if abs(number) < _MOST else None
