"""Runs evaluations through lm-eval, and keeps their results so that none is repeated.

    runs = Runs(batch_size=100)
    run = runs.evaluate({"pretrained": "graph-small"}, task="latentref_graph", folder="out/coconut")
    run.accuracy, run.command, run.tokens_per_document

If the folder already holds results of the same command, checkpoints, data and release, they are
read and nothing is run.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref import _autoload
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.benchmarks.splits import load_split
from lm_eval_latentref.checkpoints.files import read_json, read_json_lines, reading, write_text
from lm_eval_latentref.checkpoints.sets import NAMES, CheckpointNames, SetPlan, plan_run, resolve
from lm_eval_latentref.checkpoints.sources import fingerprint
from lm_eval_latentref.evaluation.compare import Answer, Answers, read_answers
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.statistics import standard_error
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.accounting import restart_peak_memory
from lm_eval_latentref.latent.config import OPTION_NAMES

logger = logging.getLogger(__name__)

DONE = "done.json"
RESULTS = "results_*.json"
SAMPLES = "samples_*.jsonl"
"""Patterns for the names of the two files that lm-eval writes for a task."""
PACKAGE = "lm-eval-latentref"
_WORKING_PHASES = ("encode", "think", "decode")


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A finished evaluation of one task."""

    command: str
    """The command line that repeats the evaluation."""
    answers: Answers
    cost: Mapping[str, Any]
    """The report of `accounting.Accounting`."""
    targets: tuple[str, ...]
    """The right answer of each document."""
    num_steps: tuple[int | None, ...]
    """The number of gold steps of each document; None if the document has no steps."""
    made_with: Mapping[str, Any]
    """The `versions` and `machine` of the process that ran it."""
    checkpoints: tuple[str, ...]
    """Fingerprints of the backbone, and of strong and weak if the set has references."""

    @property
    def metric(self) -> str:
        """The name of the metric in `values`."""
        (metric,) = self.answers.metrics.values()
        return metric

    @property
    def values(self) -> list[float]:
        """The metric's value for each document."""
        return [answer.value for answer in self._by_document()]

    @property
    def accuracy(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def accuracy_error(self) -> float:
        return standard_error(self.values)

    @property
    def margins(self) -> list[float]:
        """The gold candidate's margin in nats for each document; empty without candidates."""
        margins = [answer.margin for answer in self._by_document()]
        return [margin for margin in margins if margin is not None]

    @property
    def tied(self) -> float | None:
        """Share of documents whose likeliest candidates are tied; None if none were scored."""
        tied = [answer.tied for answer in self._by_document() if answer.tied is not None]
        return sum(tied) / len(tied) if tied else None

    @property
    def commonest_choice(self) -> float | None:
        """Share of documents with the most common choice, by index; None if none were scored."""
        chosen = [answer.choice for answer in self._by_document() if answer.choice is not None]
        return Counter(chosen).most_common(1)[0][1] / len(chosen) if chosen else None

    @property
    def tokens_per_document(self) -> float:
        """The mean number of generated text tokens, without end of sequence and thoughts."""
        return float(self.cost["tokens_generated"] / len(self.values))

    @property
    def seconds_per_document(self) -> float:
        """The mean time of encoding, thinking, and writing or scoring, without loading."""
        seconds = sum(self.cost["seconds"][phase] for phase in _WORKING_PHASES)
        return float(seconds / len(self.values))

    @property
    def peak_memory(self) -> int | None:
        """Peak bytes of tensors on the GPUs; None on a CPU, whose peak includes earlier runs."""
        peaks = self.cost["peak_memory_bytes"]
        return sum(num for place, num in peaks.items() if place != "host") or None

    @property
    def majority(self) -> float:
        """The accuracy of always giving the most frequent answer."""
        return Counter(self.targets).most_common(1)[0][1] / len(self.targets)

    def _by_document(self) -> list[Answer]:
        (answers,) = self.answers.tasks.values()
        return [answers[number] for number in sorted(answers)]


class Runs:
    """Evaluations one after another, with the same batch size and on the same device.

    Names are resolved and tasks built once. The last model is used again if the next run differs
    only in refinement or task.

    Args:
        device: None for the GPU if there is one.
        limit: only the first `limit` documents of each task.
        plans: names that the caller has already resolved.
    """

    def __init__(
        self,
        *,
        batch_size: int = 100,
        device: str | None = None,
        limit: int | None = None,
        plans: Iterable[SetPlan] = (),
    ) -> None:
        self._options = {"batch_size": batch_size, "device": device}
        self._limit = limit
        self._plans = {plan.names: plan for plan in plans}
        self._key: str | None = None
        self._model: LatentRefLM | None = None
        self._tasks: dict[str, Any] = {}

    def evaluate(self, model_args: Mapping[str, Any], *, task: str, folder: str | Path) -> StudyRun:
        """Runs `task` with lm-eval and logs samples below `folder`, or reads the results there.

        Raises LatentRefError if the model cannot use `model_args`.
        """
        folder = Path(folder)
        command = self._command(model_args, task)
        names = CheckpointNames.of(model_args)
        if names not in self._plans:
            self._plans[names] = resolve(names)
        plan = self._plans[names]
        sources = [plan.backbone, plan.strong, plan.weak]
        fingerprints = [fingerprint(source) for source in sources if source is not None]
        identity = {"command": command, "checkpoints": fingerprints}
        if not _is_done(folder, identity):
            shutil.rmtree(folder, ignore_errors=True)
            logger.info("%s", command)
            self._run(self._load(model_args, plan, fingerprints), model_args, task, folder)
            made_with = {"versions": versions(), "machine": machine()}
            done = {**identity, "made_with": made_with, "data": self._task(task).data}
            write_text(folder / DONE, json.dumps(done) + "\n")
        advice = f"remove {folder}, and give the same command again"
        (results,) = folder.rglob(RESULTS)
        with reading(results, advice):
            cost = read_json(results, advice)["config"]["latentref"]["cost"]
        samples = _samples(folder)
        return StudyRun(
            command=command,
            answers=read_answers(str(folder)),
            cost=cost,
            targets=tuple(str(sample["target"]) for sample in samples),
            num_steps=tuple(_num_steps(sample) for sample in samples),
            made_with=read_json(folder / DONE, advice)["made_with"],
            checkpoints=tuple(fingerprints),
        )

    def _run(
        self, model: LatentRefLM, model_args: Mapping[str, Any], task: str, folder: Path
    ) -> None:
        from lm_eval import simple_evaluate
        from lm_eval.loggers import EvaluationTracker

        _autoload.install()
        tracker = EvaluationTracker(output_path=str(folder))
        restart_peak_memory()
        results = simple_evaluate(
            model=model,
            model_args=dict(model_args),
            tasks=[self._task(task)],
            task_manager=self._manager,
            limit=self._limit,
            log_samples=True,
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name=task, samples=samples[task])

    @functools.cached_property
    def _manager(self) -> Any:
        from lm_eval.tasks import TaskManager

        # Reading lm-eval's own tasks, which are not needed, takes seconds.
        return TaskManager(include_path=str(tasks_path()), include_defaults=False)

    def _task(self, name: str) -> Any:
        """One of our tasks as lm-eval built it."""
        if name not in self._tasks:
            self._tasks[name] = self._manager.load([name])["tasks"][name]
        return self._tasks[name]

    def _load(
        self, model_args: Mapping[str, Any], plan: SetPlan, fingerprints: list[str]
    ) -> LatentRefLM:
        """The model of `model_args`; the last model is used again if only its refinement differs.

        Args:
            plan: the resolved names.
            fingerprints: those of the checkpoints.
        """
        given = {name: model_args[name] for name in OPTION_NAMES if name in model_args}
        _, config = plan_run(plan, given)
        others = {name: value for name, value in model_args.items() if name not in OPTION_NAMES}
        # Runs without a search load no references, so that their memory is measured without them.
        kept = {name: getattr(config, name) for name in ("searches", "latent_kind")}
        key = json.dumps([others, kept, fingerprints], sort_keys=True)
        if self._model is None or key != self._key:
            self._model = None
            gc.collect()
            loading = {name: value for name, value in others.items() if name not in NAMES}
            self._model = LatentRefLM(**{**loading, **given, "pretrained": plan, **self._options})
            self._key = key
        self._model.refine(config)
        return self._model

    def _command(self, model_args: Mapping[str, Any], task: str) -> str:
        given = ",".join(f"{name}={value}" for name, value in model_args.items())
        words = ["latentref", "run", "--model", "latentref", "--model_args", given]
        words += ["--tasks", task]
        for name, value in {**self._options, "limit": self._limit}.items():
            words += [f"--{name}", str(value)] if value is not None else []
        return shlex.join(words)


def evaluate(
    model_args: Mapping[str, Any],
    *,
    task: str,
    folder: str | Path,
    batch_size: int = 100,
    limit: int | None = None,
) -> StudyRun:
    """Runs or reads one evaluation, as `Runs.evaluate` does."""
    runs = Runs(batch_size=batch_size, limit=limit)
    return runs.evaluate(model_args, task=task, folder=folder)


def _is_done(folder: Path, identity: Mapping[str, Any]) -> bool:
    # If there are results of several runs, it is not known which of them are ours.
    if any(len(list(folder.rglob(pattern))) != 1 for pattern in (RESULTS, SAMPLES)):
        return False
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        same = all(done[name] == value for name, value in identity.items())
        release = done["made_with"]["versions"].get(PACKAGE)
        data = done.get("data", {})
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and release == versions().get(PACKAGE) and _is_unchanged(data)


def _is_unchanged(data: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether published splits are unchanged; generated splits only change with the release."""
    return all(
        load_split(*split.split()).content_hash == identity["sha256"]
        for split, identity in data.items()
        if "sha256" in identity
    )


def _samples(folder: Path) -> list[dict[str, Any]]:
    """One logged sample for each document, ordered by `doc_id`."""
    (file,) = folder.rglob(SAMPLES)
    with reading(file):
        samples = {int(sample["doc_id"]): sample for _, sample in read_json_lines(file)}
        return [samples[number] for number in sorted(samples)]


def _num_steps(sample: Mapping[str, Any]) -> int | None:
    steps = sample["doc"].get("steps") if isinstance(sample["doc"], dict) else None
    return len(steps) if isinstance(steps, list) else None
