"""One evaluation through lm-eval, kept in a folder and not done twice.

    run = evaluate({"pretrained": "hops-small"}, task="latentref_hops", folder="out/study/coconut")
    run.accuracy, run.command, run.tokens_per_document

A run whose folder already holds this command's results on these checkpoints is read back. Knows
the files that lm-eval writes; deliberately compares nothing.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref import _autoload
from lm_eval_latentref.benchmarks.tasks import tasks_path
from lm_eval_latentref.checkpoints.sources import fingerprint, resolve
from lm_eval_latentref.errors import saving
from lm_eval_latentref.tuning.samples import Answers, read_answers
from lm_eval_latentref.tuning.statistics import standard_error

logger = logging.getLogger(__name__)

DONE = "done.json"
_WORKING = ("encode", "think", "decode")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished evaluation of one task."""

    command: str
    """What repeats it, as a user would type it."""
    answers: Answers
    cost: Mapping[str, Any]
    """As `accounting.Accounting.report` gives it."""
    targets: tuple[str, ...]
    """Each document's right answer."""

    @property
    def values(self) -> list[float]:
        """Of the task's metric, by document."""
        (by_document,) = self.answers.tasks.values()
        return [by_document[number].value for number in sorted(by_document)]

    @property
    def accuracy(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def accuracy_error(self) -> float:
        return standard_error(self.values)

    @property
    def margins(self) -> list[float]:
        """Of the gold candidate in nats, by document; empty where candidates were not scored."""
        (by_document,) = self.answers.tasks.values()
        margins = [by_document[number].margin for number in sorted(by_document)]
        return [margin for margin in margins if margin is not None]

    @property
    def tokens_per_document(self) -> float:
        """Text that was generated, the end-of-sequence token and the thoughts left out."""
        return float(self.cost["tokens_generated"] / len(self.values))

    @property
    def seconds_per_document(self) -> float:
        """Of encoding, thinking and writing or scoring; loading left out."""
        seconds = sum(self.cost["seconds"][phase] for phase in _WORKING)
        return float(seconds / len(self.values))

    @property
    def majority(self) -> float:
        """Accuracy of always giving the most frequent answer."""
        return Counter(self.targets).most_common(1)[0][1] / len(self.targets)


def evaluate(
    model_args: Mapping[str, Any],
    *,
    task: str,
    folder: str | Path,
    batch_size: int = 100,
    limit: int | None = None,
) -> Run:
    """Runs `task` with lm-eval, its samples logged below `folder`, or reads what is there.

    Raises LatentRefError for what the model cannot use.
    """
    folder = Path(folder)
    command = _command(model_args, task, batch_size, limit)
    identity = {"command": command, "checkpoints": _checkpoints(model_args)}
    if not _is_done(folder, identity):
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("%s", command)
        _run(model_args, task, folder, batch_size, limit)
        with saving(folder / DONE):
            (folder / DONE).write_text(json.dumps(identity) + "\n", "utf-8")
    (results,) = folder.rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    return Run(
        command=command,
        answers=read_answers(str(folder)),
        cost=found["config"]["latentref"]["cost"],
        targets=_targets(folder),
    )


def _run(
    model_args: Mapping[str, Any], task: str, folder: Path, batch_size: int, limit: int | None
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    _autoload.install()
    tracker = EvaluationTracker(output_path=str(folder))
    results = simple_evaluate(
        model="latentref",
        model_args=dict(model_args),
        tasks=[task],
        # The command line looks through all of lm-eval's own tasks first, which takes seconds.
        task_manager=TaskManager(include_path=str(tasks_path()), include_defaults=False),
        batch_size=batch_size,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name=task, samples=samples[task])


def _command(model_args: Mapping[str, Any], task: str, batch_size: int, limit: int | None) -> str:
    given = ",".join(f"{name}={value}" for name, value in model_args.items())
    words = ["latentref", "run", "--model", "latentref", "--model_args", given, "--tasks", task]
    words += ["--batch_size", str(batch_size)]
    return shlex.join(words + (["--limit", str(limit)] if limit is not None else []))


def _checkpoints(model_args: Mapping[str, Any]) -> list[str]:
    plan = resolve(pretrained=model_args.get("pretrained"))
    sources = [plan.backbone, plan.strong, plan.weak]
    return [fingerprint(source) for source in sources if source is not None]


def _is_done(folder: Path, identity: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads((folder / DONE).read_text(encoding="utf-8")) == identity)
    except (OSError, ValueError):
        return False


def _targets(folder: Path) -> tuple[str, ...]:
    (file,) = folder.rglob("samples_*.jsonl")
    with file.open(encoding="utf-8") as lines:
        return tuple(str(json.loads(line)["target"]) for line in lines)
