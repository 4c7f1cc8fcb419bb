"""First evaluations for new users: a small packaged set that needs no download, and SmolLM2-135M.

    latentref demo --output results/demo
    latentref demo --smollm2 --output results/demo-smollm2

The first command evaluates No-CoT, CoT, Coconut, and Coconut refined with the paper's references
and with the positive control on the same problems, and draws a picture. The second runs lm-eval
with the default model and no model arguments. All commands are printed for copying.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref.benchmarks import published
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.files import holding, write_text
from lm_eval_latentref.checkpoints.packaged import DEFAULT_SET, packaged_folder
from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.evaluation.plots import figure_class
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.results import read_run
from lm_eval_latentref.evaluation.runs import Runs, StudyRun
from lm_eval_latentref.evaluation.statistics import Interval, paired_interval, proportion_interval
from lm_eval_latentref.evaluation.templates import render

logger = logging.getLogger(__name__)

SET, TASK = "graph-small", "latentref_graph"
PLAIN = "Coconut"
REFINED, CONTROL = "refined, the paper's references", "refined, positive control"
PICTURE = "demo.png"

REAL_TASK = "latentref_mathqa_harness"
"""The SmolLM2 demo's task: MathQA with the prompt of lm-eval's own `mathqa`."""
GENERATED_TASK = "latentref_prosqa_generated"
"""The SmolLM2 demo's task if MathQA is not available."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the demo."""

    name: str
    run: StudyRun
    accuracy: Interval
    difference: Interval
    """The difference of accuracy from plain Coconut on the same problems."""


def run_demo(*, output: str, limit: int) -> int:
    """Evaluates every row on the first `limit` problems and prints the page; returns 0.

    The page (README.md), the picture and lm-eval's results are written into the folder `output`.
    """
    shown = _shown()
    runs = Runs(batch_size=250, limit=limit)
    with holding(output, "latentref demo"):
        finished = {
            name: runs.evaluate(args, task=TASK, folder=Path(output) / SET / str(number))
            for number, (name, args) in enumerate(model_arguments(shown).items())
        }
    rows = [_row(name, run, finished[PLAIN]) for name, run in finished.items()]
    page = render(
        "demo.md.j2",
        rows=rows,
        task=TASK,
        num=len(rows[0].run.values),
        why=shown["refined_why"],
        meaning=meaning(rows),
        picture=PICTURE if _draw(rows, Path(output) / PICTURE) else None,
        versions=versions(),
        machine=machine(),
    )
    write_text(Path(output) / "README.md", page)
    print(page, flush=True)
    return 0


def model_arguments(shown: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The model arguments of each row, in order; `shown` is the content of the set's demo.json."""
    control = {"strong": f"{SET}/control", "weak": SET}
    return {
        "No-CoT": {"pretrained": f"{SET}/no_cot"},
        "CoT": {"pretrained": f"{SET}/cot"},
        PLAIN: {"pretrained": SET, "memory_rate": 0.0, "search_step_size": 0.0},
        REFINED: {"pretrained": SET, **shown["refined"]},
        CONTROL: {"pretrained": SET, **control, **shown["control"]},
    }


def meaning(rows: Sequence[Row]) -> str:
    """One sentence on the results of the two refined rows."""
    by_name = {row.name: row.difference for row in rows}
    return (
        f"With the paper's references, refined Coconut is {_verdict(by_name[REFINED])}; with a "
        "reference that thinks better (the finished Coconut of the same training), it is "
        f"{_verdict(by_name[CONTROL])}."
    )


def _verdict(difference: Interval) -> str:
    if difference.includes_zero:
        return "not significantly better or worse than plain Coconut on these problems"
    points = f"{100 * abs(difference.mean):.1f} points"
    return f"better by {points}" if difference.mean > 0 else f"worse by {points}"


def _shown() -> dict[str, Any]:
    folder = packaged_folder(SET)
    assert folder is not None
    content: dict[str, Any] = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    return content


def _row(name: str, run: StudyRun, plain: StudyRun) -> Row:
    return Row(
        name=name,
        run=run,
        accuracy=proportion_interval(run.values),
        difference=paired_interval(run.values, plain.values, seed=0, num_resamples=2000),
    )


def _draw(rows: Sequence[Row], path: Path) -> bool:
    """Draws every accuracy with its interval; logs a line and returns False without matplotlib."""
    try:
        figure = figure_class()(figsize=(7, 3), layout="constrained")
    except LatentRefError as error:
        logger.warning("%s", error)
        return False
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        low, high = row.accuracy.low, row.accuracy.high
        axes.plot(
            [100 * low, 100 * high], [place, place], color="tab:blue", linewidth=6, alpha=0.35
        )
        axes.plot(100 * row.accuracy.mean, place, "o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set_xlabel("accuracy in per cent; bars are 95 % intervals")
    axes.set_title(f"{SET} on {len(rows[0].run.values)} problems of {TASK}")
    with saving(path):
        figure.savefig(path, dpi=110)
    return True


def run_smollm2(*, output: str, limit: int) -> int:
    """Prints and runs lm-eval's command on `limit` documents; returns its exit status.

    Its results go below the folder `output`, with a README.md.
    """
    task = choose_task()
    command = lm_eval_command(task, output=output, limit=limit)
    print(f"$ {shlex.join(command)}", flush=True)
    environment = dict(os.environ)
    if task == GENERATED_TASK:
        # This run needs nothing from the hub; without this, libraries still wait for it.
        environment["HF_HUB_OFFLINE"] = "1"
    started = time.time()
    done = subprocess.run([sys.executable, "-m", *command], env=environment, check=False)
    if done.returncode == 0:
        # Readers have other paths.
        shown = shlex.join(command).replace(str(tasks_path()), '"$(latentref tasks-path)"')
        write_report(Path(output), shown, task, since=started)
    return done.returncode


def write_report(output: Path, command: str, task: str, *, since: float) -> None:
    """Writes the results, versions and machine of the SmolLM2 demo into `output`/README.md.

    Args:
        since: time of the start in seconds since 1970; older results are ignored.
    """
    files = [path for path in output.rglob("results_*.json") if path.stat().st_mtime >= since]
    results = read_run(max(files, key=lambda path: path.stat().st_mtime)).tasks[task]
    page = render(
        "demo_smollm2.md.j2",
        model=DEFAULT_SET,
        task=results,
        command=command,
        versions=versions(),
        machine=machine(),
    )
    write_text(output / "README.md", page)


def choose_task() -> str:
    """MathQA if it is in the folder `LATENTREF_DATA` or on the hub; otherwise a generated task."""
    try:
        published.read("mathqa", "test")
        return REAL_TASK
    except published.DataMissingError as error:
        logger.warning("%s", error)
    return GENERATED_TASK


def lm_eval_command(task: str, *, output: str, limit: int) -> list[str]:
    """The words of the SmolLM2 demo's command, as a user would type them."""
    words = ["lm_eval", "run", "--model", "latentref", "--include_path", str(tasks_path())]
    words += ["--tasks", task, "--limit", str(limit), "--batch_size", "8", "--output_path", output]
    return words
