"""A grid of settings in one sweep, against separate runs of them.

    python results/performance/sweep.py --batch_size 16 -o results/performance/sweep.json

What a sweep saves grows with the number of settings and the length of the contexts, which are read
once for all of them. Some settings run one by one too, and the whole grid's cost is scaled up from
them; models are loaded once for both sides. The limit is what the columns that the models read
allow: those of separate runs over those of the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import workload

from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.settings import Grid, Setting
from lm_eval_latentref.evaluation.sweep import load_model
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


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(
        __doc__, argv, *OPTIONS, bench.PROFILE, dtype="auto", documents=16, batch_size=16
    )
    task_name = "latentref_graph_mc_dev" if args.tiny else args.task
    name = args.pretrained or ("graph-small" if args.tiny else "smollm2-135m")
    grid = Grid(
        latent_steps=(6,),
        memory_rates=(0.3,) if args.tiny else (0.1, 0.3, 0.7),
        step_sizes=(0.3, 1.0),
    )
    model_args = {"pretrained": name, "batch_size": args.batch_size, "dtype": args.dtype}
    model = load_model({**model_args, "device": str(workload.device())}, grid)
    task = load_task(task_name, tuning=True, limit=args.rounds * args.documents)
    run = GridRun(model, task, grid.settings())
    reasoner = model.reasoner
    before = sum(reasoner.accounting.report()["columns_read"].values())
    with TemporaryDirectory() as folder, reasoner.accounting.working():
        fill = partial(run.fill, Path(folder) / "sweep.jsonl")
        together, _ = bench.timed(fill, clock=bench.clock_of(args))
    columns = {SWEEP: sum(reasoner.accounting.report()["columns_read"].values()) - before}
    chosen = evenly(list(run.configs), args.separate)
    took, difference, columns[SEPARATE] = separately(run, chosen, bench.clock_of(args))
    scale = len(run.configs) / len(chosen)
    seconds = {SWEEP: together, SEPARATE: took * scale}
    columns[SEPARATE] = round(columns[SEPARATE] * scale)
    report = bench.Report(
        name="sweep",
        header=("", "seconds", "columns read"),
        rows=[(name, f"{seconds[name]:.3g}", str(columns[name])) for name in seconds],
        record={"seconds": seconds, "columns": columns, "settings": len(run.configs)},
    )
    ratio, limit = seconds[SEPARATE] / together, columns[SEPARATE] / columns[SWEEP]
    report.judge("limit by columns: separate runs / sweep", [limit])
    least = SHARE_OF_LIMIT * limit
    report.judge(f"time of {SEPARATE} / {SWEEP}", [ratio], at_least=least, tiny=args.tiny)
    report.remarks.append(
        f"{len(chosen)} of {len(run.configs)} settings ran separately; largest difference of a "
        f"log-likelihood {difference:.1e}."
    )
    in_float32 = args.dtype == "float32"
    report.check(difference <= TOLERANCE or not in_float32, f"answers differ by {difference:.2g}")
    if args.profile:
        again = GridRun(model, task, grid.settings())
        with TemporaryDirectory() as folder:
            report.profile = bench.profile_of(lambda: again.fill(Path(folder) / "sweep.jsonl"))
    return report.finish(args)


def evenly(settings: list[Setting], num: int) -> list[Setting]:
    num = min(num, len(settings))
    step = (len(settings) - 1) / max(1, num - 1)
    return [settings[round(index * step)] for index in range(num)]


def separately(
    run: GridRun, settings: Sequence[Setting], clock: Callable[[], float]
) -> tuple[float, float, int]:
    """Seconds of one run for each setting, the largest difference to the sweep, columns read."""
    seconds, largest, columns = 0.0, 0.0, 0
    for setting in settings:
        reasoner = Reasoner(
            run.model.reasoner.loaded, run.configs[setting], max_length=run.model.max_length
        )
        took, answers = bench.timed(score, run, reasoner, clock=clock)
        seconds += took
        columns += sum(reasoner.accounting.report()["columns_read"].values())
        for request, value in run.scores[setting].items():
            largest = max(
                largest, abs(answers[request] - (value.log_likelihood if value else math.nan))
            )
    return seconds, largest, columns


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
