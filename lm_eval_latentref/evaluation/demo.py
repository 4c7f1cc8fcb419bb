"""The first run of a new user: the two trained sets that come with the package.

    latentref demo --output results/demo

The small set shows what thoughts are for: No-CoT, Coconut and Coconut refined in one table. Then
the set on SmolLM2-135M by the plain command, without any model argument; the benchmark is picked by
what can be reached from here. Commands are printed so that they can be copied and changed.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval_latentref.benchmarks import splits
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.packaged import DEFAULT_SET

logger = logging.getLogger(__name__)

REAL_TASK = "latentref_mathqa_harness"
"""lm-eval's own `mathqa` on rows that `LATENTREF_DATA` may hold."""

GENERATED_TASK = "latentref_prosqa_generated"

SMALL_TASK = "latentref_hops"
SMALL_PROBLEMS = 200
SMALL_ROWS: dict[str, dict[str, Any]] = {
    "No-CoT": {"pretrained": "hops-small/no_cot"},
    "Coconut": {"pretrained": "hops-small", "memory_rate": 0.0, "search_step_size": 0.0},
    "Coconut, refined": {"pretrained": "hops-small", "memory_rate": 0.05, "search_step_size": 6.4},
}


def run_demo(*, output: str, limit: int) -> int:
    """Shows the small set, then prints and runs SmolLM2's command; the exit status is lm-eval's.

    Results JSON go below the folder `output`, with all that was shown in its README.md; `limit` is
    the number of documents for SmolLM2.
    """
    small = show_small_set(output)
    task = choose_task()
    command = lm_eval_command(task, output=output, limit=limit)
    print(f"$ {shlex.join(command)}", flush=True)
    environment = dict(os.environ)
    if task == GENERATED_TASK:
        # Nothing of this run is on the hub: without this, libraries still wait for it.
        environment["HF_HUB_OFFLINE"] = "1"
    started = time.time()
    done = subprocess.run([sys.executable, "-m", *command], env=environment, check=False)
    if done.returncode == 0:
        # A path of this machine means nothing to a reader.
        shown = shlex.join(command).replace(str(tasks_path()), '"$(latentref tasks-path)"')
        write_report(Path(output), small, shown, task, since=started)
    return done.returncode


def write_report(output: Path, small: str, command: str, task: str, *, since: float) -> None:
    """Writes what the demo showed, and where it ran, into `output`/README.md."""
    from lm_eval_latentref.evaluation.provenance import machine, versions

    files = [path for path in output.rglob("results_*.json") if path.stat().st_mtime >= since]
    results = json.loads(max(files, key=lambda path: path.stat().st_mtime).read_text())
    numbers = results["results"][task]
    metrics = sorted(name for name in numbers if "," in name and "_stderr" not in name)
    table = [
        f"| {name.split(',')[0]} | {numbers[name]:.4f} | "
        f"{numbers[name.replace(',', '_stderr,')]:.4f} |"
        for name in metrics
    ]
    num_documents = results["n-samples"][task]["effective"]
    lines = [
        *("# What `make demo` showed", "", "Written by the command itself.", ""),
        *("```", small.strip(), "```", ""),
        f"`{DEFAULT_SET}`, the trained set that `--model latentref` means by itself, on the first "
        f"{num_documents} documents of `{task}`:",
        *("", "```", f"$ {command}", "```", ""),
        *("| metric | value | standard error |", "|---|---|---|", *table, ""),
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}.",
        f"Machine: {', '.join(f'{name} {value}' for name, value in machine().items())}.",
    ]
    (output / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def show_small_set(output: str) -> str:
    """Evaluates hops-small without thoughts, with and with refined ones; prints, returns a table.

    Results JSON and samples go below the folder `output`.
    """
    from lm_eval_latentref.evaluation.runs import evaluate

    lines = [f"{SMALL_TASK}, {SMALL_PROBLEMS} generated problems of five steps each", ""]
    lines.append(f"{'':18}{'accuracy %':>16}{'tokens':>8}{'ms':>8}   (a problem)")
    commands = []
    for name, model_args in SMALL_ROWS.items():
        part = name.replace(", ", "-").lower()
        run = evaluate(
            model_args,
            task=SMALL_TASK,
            folder=Path(output) / "hops-small" / part,
            limit=SMALL_PROBLEMS,
        )
        accuracy = f"{100 * run.accuracy:.1f} +- {100 * run.accuracy_error:.1f}"
        milliseconds = 1000 * run.seconds_per_document
        lines.append(f"{name:18}{accuracy:>16}{run.tokens_per_document:8.1f}{milliseconds:8.1f}")
        commands.append(f"$ {run.command}")
    shown = "\n".join(["", *commands, "", *lines, ""])
    print(shown, flush=True)
    return shown


def choose_task() -> str:
    """MathQA from the folder `LATENTREF_DATA` or the hub; generated data where neither has it."""
    try:
        splits.read("mathqa", "test")
        return REAL_TASK
    except splits.DataMissingError as error:
        logger.warning("%s", error)
    return GENERATED_TASK


def lm_eval_command(task: str, *, output: str, limit: int) -> list[str]:
    """The words of the demo's command, as a user would type them."""
    return [
        *("lm_eval", "run", "--model", "latentref"),
        *("--include_path", str(tasks_path()), "--tasks", task),
        *("--limit", str(limit), "--batch_size", "8", "--output_path", output),
    ]
