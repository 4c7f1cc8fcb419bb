"""The set on SmolLM2-135M by the plain command, without any model argument.

    latentref demo --smollm2 --output results/demo-smollm2

The benchmark is picked by what can be reached from here. The command is printed so that it can be
copied and changed.
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

from lm_eval_latentref.benchmarks import splits
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.packaged import DEFAULT_SET

logger = logging.getLogger(__name__)

REAL_TASK = "latentref_mathqa_harness"
"""lm-eval's own `mathqa` on rows that `LATENTREF_DATA` may hold."""

GENERATED_TASK = "latentref_prosqa_generated"


def run_demo(*, output: str, limit: int) -> int:
    """Prints and runs the command on `limit` documents; the exit status is lm-eval's.

    Results JSON go below the folder `output`, with what was shown in its README.md.
    """
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
        write_report(Path(output), shown, task, since=started)
    return done.returncode


def write_report(output: Path, command: str, task: str, *, since: float) -> None:
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
        *("# What `make demo-smollm2` showed", "", "Written by the command itself.", ""),
        f"`{DEFAULT_SET}`, the trained set that `--model latentref` means by itself, on the first "
        f"{num_documents} documents of `{task}`:",
        *("", "```", f"$ {command}", "```", ""),
        *("| metric | value | standard error |", "|---|---|---|", *table, ""),
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}.",
        f"Machine: {', '.join(f'{name} {value}' for name, value in machine().items())}.",
    ]
    (output / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


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
