"""A grid of settings in one sweep, against separate runs of them.

    python results/performance/sweep.py -o results/performance/sweep.json

What a sweep saves grows with the number of settings and the length of the contexts, which are read
once for all of them. Some settings run one by one too, one of each step size, and the whole grid's
cost is scaled up from them; models are loaded once for both sides. The limit is what the columns
that the models read allow: those of separate runs over those of the sweep.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import pages
import workload
from bench import NUM_CHECKED, Side

from lm_eval_latentref.evaluation.dev_tasks import DevTask, Document, load_task
from lm_eval_latentref.evaluation.settings import Grid, Setting
from lm_eval_latentref.evaluation.sweep import load_model
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.evaluation.sweep_run import GridRun
from lm_eval_latentref.latent.batching import in_batches
from lm_eval_latentref.latent.reasoner import Reasoner

SWEEP, SEPARATE = "sweep", "separate runs, scaled up"
SHARE_OF_LIMIT = 0.85
TOLERANCE = 1e-4
"""Largest difference of log-likelihoods in float32."""

OPTIONS = [
    ("--task", {"default": "latentref_mathqa_mc_dev"}),
    ("--separate", {"type": int, "default": 3, "help": "settings that run one by one too"}),
]

Answers = dict[Setting, list[float]]
"""All log-likelihoods under each setting."""


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(
        __doc__, argv, *OPTIONS, bench.PROFILE, dtype="auto", documents=16, batch_size=16
    )
    grid = Grid(
        latent_steps=(6,),
        memory_rates=(0.3,) if args.tiny else (0.1, 0.3, 0.7),
        step_sizes=(0.3, 1.0),
    )
    settings = grid.settings()
    chosen = evenly(sorted(settings, key=lambda setting: setting.step_size), args.separate)
    task_name = "latentref_graph_mc_dev" if args.tiny else args.task
    num_documents = args.rounds * args.documents + bench.NUM_WARM_UP
    task = load_task(task_name, tuning=True, limit=num_documents)
    difference = largest_difference(loaded(args, grid, "float32"), task, settings, chosen)
    swept = Swept(loaded(args, grid, args.dtype), task, settings, chosen)
    sides = [Side(SWEEP, swept.together), Side(SEPARATE, swept.separately)]
    rounds = bench.alternate(sides, task.documents, args)
    scale = len(settings) / len(chosen)
    rounds.seconds[SEPARATE] = [scale * seconds for seconds in rounds.seconds[SEPARATE]]
    columns = {
        SWEEP: swept.columns[SWEEP],
        SEPARATE: round(scale * swept.columns[SEPARATE]),
    }
    limit = columns[SEPARATE] / columns[SWEEP]
    report = pages.Report(
        name="sweep",
        header=("", "documents/s: median (range)", "IQR", "columns read"),
        rows=[(*row, str(columns[row[0]])) for row in rounds.rows()],
        record={
            **rounds.record(),
            "columns": columns,
            "settings": len(settings),
            "max_difference_float32": difference,
        },
    )
    report.judge(
        f"time of {SEPARATE} / {SWEEP}",
        rounds.ratio(SEPARATE, SWEEP),
        at_least=SHARE_OF_LIMIT * limit,
        tiny=args.tiny,
        limit=(limit, "columns read"),
    )
    report.remarks.append(
        f"{len(chosen)} of {len(settings)} settings ran separately, in {args.dtype}; "
        f"log-likelihoods in float32 differ by at most {difference:.1e} over {NUM_CHECKED} "
        "documents."
    )
    report.check(difference <= TOLERANCE, f"log-likelihoods in float32 differ by {difference:.2g}")
    if args.profile:
        batch = task.documents[: args.batch_size]
        report.profile = bench.profile_of(partial(swept.together, batch))
    return report.finish(args)


def loaded(args: Any, grid: Grid, dtype: str) -> SweepModel:
    name = args.pretrained or ("graph-small" if args.tiny else "smollm2-135m")
    model_args = {"pretrained": name, "batch_size": args.batch_size, "dtype": dtype}
    return load_model({**model_args, "device": str(workload.device())}, grid)


def largest_difference(
    model: SweepModel, task: DevTask, settings: Sequence[Setting], chosen: Sequence[Setting]
) -> float:
    """Of any log-likelihood under the chosen settings, together and separately."""
    swept = Swept(model, task, settings, chosen)
    documents = task.documents[:NUM_CHECKED]
    together, separate = swept.together(documents), swept.separately(documents)
    return max(
        abs(a - b)
        for setting in chosen
        for a, b in zip(together[setting], separate[setting], strict=True)
    )


def evenly(settings: list[Setting], num: int) -> list[Setting]:
    num = min(num, len(settings))
    step = (len(settings) - 1) / max(1, num - 1)
    return [settings[round(index * step)] for index in range(num)]


@dataclasses.dataclass
class Swept:
    """Both sides of the comparison, and how many columns each has read."""

    model: SweepModel
    task: DevTask
    settings: Sequence[Setting]
    chosen: Sequence[Setting]
    """Those that run one by one."""
    columns: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys((SWEEP, SEPARATE), 0)
    )

    def together(self, documents: Sequence[Document]) -> Answers:
        """The answers of one sweep under all settings."""
        run, accounting = self._run(documents), self.model.reasoner.accounting
        before = sum(accounting.report()["columns_read"].values())
        with TemporaryDirectory() as folder, accounting.working():
            run.fill(Path(folder) / "sweep.jsonl")
        self.columns[SWEEP] += sum(accounting.report()["columns_read"].values()) - before
        return {
            setting: [value.log_likelihood if value else math.nan for value in _in_order(scores)]
            for setting, scores in run.scores.items()
        }

    def separately(self, documents: Sequence[Document]) -> Answers:
        """The answers of one run for each of the chosen settings."""
        run, answers = self._run(documents), {}
        for setting in self.chosen:
            reasoner = Reasoner(
                self.model.reasoner.loaded, run.configs[setting], max_length=self.model.max_length
            )
            answers[setting] = _in_order(score(run, reasoner))
            self.columns[SEPARATE] += sum(reasoner.accounting.report()["columns_read"].values())
        return answers

    def _run(self, documents: Sequence[Document]) -> GridRun:
        requests = [self.task.requests[number] for each in documents for number in each.requests]
        task = dataclasses.replace(self.task, requests=requests, documents=list(documents))
        return GridRun(self.model, task, self.settings)


def _in_order(scores: dict[int, Any]) -> list[Any]:
    return [scores[number] for number in sorted(scores)]


def score(run: GridRun, reasoner: Reasoner) -> dict[int, float]:
    """Log-likelihoods by request, as a run with one setting gives them."""
    answers: dict[int, float] = {}

    def work(batch: Sequence[Any], max_rows: int) -> Any:
        contexts = [group.context for group in batch]
        return reasoner.score(contexts, [each.continuations for each in batch], max_rows=max_rows)

    groups = run.groups
    for batch, results in in_batches(groups, limit=run.model.row_limit(len(groups)), work=work):
        for group, scores in zip(batch, results, strict=True):
            answers.update(
                zip(group.requests, (score.log_likelihood for score in scores), strict=True)
            )
    return answers


if __name__ == "__main__":
    bench.run(main)
