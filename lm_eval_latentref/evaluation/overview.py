"""Studies of several tasks on one page, beside what the paper reports.

    save(run_studies(...), "results/smollm2-135m", command="latentref study ...")

Each study has its own page in a subfolder; the page of all is made from their results.json alone.
Deliberately runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.errors import saving
from lm_eval_latentref.evaluation import study_report
from lm_eval_latentref.evaluation.pages import (
    nats,
    origin,
    percent,
    points,
    see_also,
    table_head,
    table_row,
)
from lm_eval_latentref.evaluation.reported import OTHER_BACKBONES, REPORTED, SOURCE
from lm_eval_latentref.evaluation.statistics import Interval, mcnemar, paired_interval
from lm_eval_latentref.evaluation.study import BASELINES, COCONUT, WITHOUT_STEPS, Study

FORMAT = "latentref overview 1"
REFINED = ("+ residual", "+ search", "both")

Content = Mapping[str, Any]
"""A study's results.json."""


def save(studies: Sequence[Study], folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes each study into a subfolder of its own and the page of all into `folder`."""
    pages = {}
    for study in studies:
        name = study.task.removeprefix("latentref_")
        study_report.save(study, Path(folder) / name, command=command)
        pages[study.task] = f"{name}/results.json"
    return save_page(pages, folder, command=command)


def save_page(pages: Mapping[str, str], folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes README.md and results.json into `folder`, and returns the page.

    Args:
        pages: the results.json of each task, relative to `folder`.
    """
    root = Path(folder)
    studies = {task: json.loads((root / at).read_text("utf-8")) for task, at in pages.items()}
    content = as_json(studies, pages, command=command)
    with saving(root):
        (root / "results.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        page = as_markdown(studies, pages, command=command) + see_also(root)
        (root / "README.md").write_text(page, "utf-8")
    return page


def as_json(
    studies: Mapping[str, Content], pages: Mapping[str, str], *, command: str
) -> dict[str, Any]:
    """The paper's figures, each task's mean over the sets, and all problems pooled."""
    return {
        "format": FORMAT,
        "command": command,
        "tasks": {
            task: {
                "results": pages[task],
                "problems": study["problems"],
                "chance": study["chance"],
                "majority_answer": study["majority_answer"],
                "mean_over_sets": study["mean_over_sets"],
                "reported": dataclasses.asdict(REPORTED[task]) if task in REPORTED else None,
            }
            for task, study in studies.items()
        },
        "pooled": {
            one.folder: {
                name: pooled(studies, one.number, name) for name in _refined(studies, one.number)
            }
            for one in _sets(studies)
        },
        "reported_by": SOURCE,
    }


def pooled(studies: Mapping[str, Content], number: int, name: str) -> dict[str, Any]:
    """Row `name` of the set of this number against Coconut, over the problems of all benchmarks.

    A problem counts the same whatever its task, so large tasks weigh most. Of several prompts of
    one benchmark the first counts: problems are what is resampled, and theirs are the same.
    """
    gained = lost = total = 0
    for study in benchmarks(studies).values():
        row = study["sets"][number]["rows"].get(name)
        if row is not None:
            test = row["against_coconut"]["test"]
            gained, lost = gained + test["only_second"], lost + test["only_first"]
            total += study["problems"]
    before_N, after_N = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
    after_N[:gained] = True
    before_N[gained : gained + lost] = True
    difference = paired_interval(after_N.astype(float), before_N.astype(float), seed=0)
    return {
        "problems": total,
        "difference": dataclasses.asdict(difference),
        "test": dataclasses.asdict(mcnemar(before_N, after_N)),
    }


def benchmarks(studies: Mapping[str, Content]) -> dict[str, Content]:
    """The first study of each benchmark, by the name of its plain task."""
    found: dict[str, Content] = {}
    for task, study in studies.items():
        found.setdefault(task.removesuffix("_mc").removesuffix("_harness"), study)
    return found


def as_markdown(studies: Mapping[str, Content], pages: Mapping[str, str], *, command: str) -> str:
    """Accuracy, what refinement buys, the paper's figures, what it costs, and where the rest is."""
    folders = dict.fromkeys(one.folder for one in _sets(studies))
    made_with: list[Any] = []
    for study in studies.values():
        made_with += [one for one in study["made_with"] if one not in made_with]
    lines = [
        f"# {', '.join(Path(folder).name for folder in folders)}: {len(studies)} tasks",
        "",
        f"Written by `{command}`; every figure is also in results.json here and beside each page.",
        *("", *_accuracy(studies, pages), "", *_gains(studies)),
        *("", *_reported(studies), "", *_costs(studies), "", *_heat_maps(studies, pages)),
        *("", *origin(made_with)),
    ]
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class _Set:
    number: int
    folder: str


def _sets(studies: Mapping[str, Content]) -> list[_Set]:
    first = next(iter(studies.values()))
    return [_Set(number, one["folder"]) for number, one in enumerate(first["sets"])]


def _names(studies: Mapping[str, Content]) -> list[str]:
    there = {name for one in studies.values() for name in one["mean_over_sets"]}
    rows = [f"{name}{how}" for name in (*BASELINES, COCONUT) for how in ("", WITHOUT_STEPS)]
    return [name for name in (*rows, *REFINED) if name in there]


def _refined(studies: Mapping[str, Content], number: int) -> list[str]:
    """The refined rows that the set of this number has in any task: a grid may leave some out."""
    there = {name for study in studies.values() for name in study["sets"][number]["rows"]}
    return [name for name in REFINED if name in there]


def _accuracy(studies: Mapping[str, Content], pages: Mapping[str, str]) -> list[str]:
    num_sets = len(_sets(studies))
    of = f"the mean of {num_sets} training seeds" if num_sets > 1 else "one training seed"
    lines = [
        "## Accuracy",
        "",
        f"Test splits, in percent; {of}; +- is one standard error over the problems. Settings of "
        "the refined rows are chosen on each task's dev split.",
        "",
        *table_head(["task", "problems", "chance", "majority", *_names(studies)]),
    ]
    for task, study in studies.items():
        page = Path(pages[task]).parent.as_posix()
        chance = "" if study["chance"] is None else percent(study["chance"])
        cells = [f"[{task}]({page}/README.md)", str(study["problems"]), chance]
        cells.append(percent(study["majority_answer"]))
        for name in _names(studies):
            one = study["mean_over_sets"].get(name)
            cells.append(
                f"{percent(one['accuracy'])} +- {percent(one['accuracy_stderr'])}" if one else ""
            )
        lines.append(table_row(cells))
    return lines


def _gains(studies: Mapping[str, Content]) -> list[str]:
    lines = [
        "## What refinement buys",
        "",
        "Against Coconut on the same problems, in points: 95 % paired bootstrap interval, p of the "
        "exact McNemar test for each training seed; margin in nats where candidates are compared. "
        "All tasks: every problem counts the same, and of several prompts of a benchmark the "
        "first.",
        "",
        *table_head(["task", "row", "accuracy", "p", "margin"]),
    ]
    for task, study in studies.items():
        for name in REFINED:
            if name not in study["mean_over_sets"]:
                continue
            rows = [one["rows"][name] for one in study["sets"] if name in one["rows"]]
            tests = [row["against_coconut"]["test"] for row in rows]
            difference = Interval(**study["mean_over_sets"][name]["against_coconut"])
            margins = [_margin(row) for row in rows]
            p_values = ", ".join(f"{test['p_value']:.3g}" for test in tests)
            cells = [task, name, points(difference), p_values, "; ".join(filter(None, margins))]
            lines.append(table_row(cells))
    if len(benchmarks(studies)) > 1:
        for one in _sets(studies):
            for name in _refined(studies, one.number):
                found = pooled(studies, one.number, name)
                p_value = f"{found['test']['p_value']:.3g}"
                where = f"all tasks, {one.folder}"
                difference = Interval(**found["difference"])
                lines.append(table_row([where, name, points(difference), p_value, ""]))
    return lines


def _reported(studies: Mapping[str, Content]) -> list[str]:
    """Ours and the paper's rows beside each other."""
    lines = [
        "## Beside the paper",
        "",
        f'{SOURCE}. "~": read off its figure, approximate. Ours is another model, trained on '
        "other data, so gains are to be compared, not accuracies.",
        "",
        *table_head(["task", "", *_names(studies), "gain of both over Coconut, points"]),
    ]
    for task, study in studies.items():
        means = study["mean_over_sets"]
        ours = [percent(means[n]["accuracy"]) if n in means else "" for n in _names(studies)]
        gain = points(Interval(**means["both"]["against_coconut"])) if "both" in means else ""
        lines.append(table_row([task, "here", *ours, gain]))
        if paper := REPORTED.get(task):
            values = paper.accuracy
            theirs = [
                f"{'' if name in paper.exact else '~'}{values[name]:g}" if name in values else ""
                for name in _names(studies)
            ]
            about = "" if {"both", COCONUT} <= set(paper.exact) else "~"
            gain = f"{about}{values['both'] - values[COCONUT]:+.2f}"
            lines.append(table_row([task, "paper", *theirs, gain]))
    others = "; ".join(
        f"{name} {values[COCONUT]:.2f} to {values['both']:.2f}"
        for name, values in OTHER_BACKBONES.items()
    )
    return [*lines, "", f"The paper's other backbones on MathQA, Coconut to both: {others}."]


_COSTS: Mapping[str, Callable[[Content], str]] = {
    "generated tokens a query": lambda row: f"{row['tokens_per_problem']:.2f}",
    "seconds a document": lambda row: f"{row['seconds_per_problem']:.5f}",
    "peak memory, GB": lambda row: f"{row['peak_memory_bytes'] / 1e9:.2f}",
}


def _costs(studies: Mapping[str, Content]) -> list[str]:
    lines = [
        "## What it costs",
        "",
        "Thoughts and the end of sequence are not counted as tokens; models loaded; memory: of "
        "tensors on the GPU, or of the process where there is none, which may keep some of what "
        "the row before it took. One figure for each training seed; batch sizes are in the "
        "commands of each page.",
        "",
        *table_head(["task", "", *_names(studies)]),
    ]
    for task, study in studies.items():
        for what, told in _COSTS.items():
            cells = []
            for name in _names(studies):
                rows = [one["rows"][name] for one in study["sets"] if name in one["rows"]]
                cells.append(" / ".join(told(row) for row in rows))
            lines.append(table_row([task, what, *cells]))
        if (paper := REPORTED.get(task)) and paper.tokens:
            theirs = paper.tokens
            cells = [f"{theirs[name]:g}" if name in theirs else "" for name in _names(studies)]
            lines.append(table_row([task, "the paper's tokens", *cells]))
    return lines


def _heat_maps(studies: Mapping[str, Content], pages: Mapping[str, str]) -> list[str]:
    """The sweep's figure of each task and set; all of its figures are on the task's page."""
    lines = ["## Settings tried on the dev splits", ""]
    for task, study in studies.items():
        for one in study["sets"]:
            lines.append(f"`{study['dev_task']}`, {one['folder']}: best {_best(one['sweep'])}.")
            if one["heat_map"]:
                place = Path(pages[task]).parent / one["heat_map"]
                lines += ["", f"![{task}]({place.as_posix()})"]
            lines.append("")
    return lines


def _best(sweep: Content) -> str:
    named = "; ".join(f"{row}: {label}" for row, label in sweep["best"].items())
    return f"{named}; recommended, the simplest within noise: {sweep['recommended']}"


def _margin(row: Content) -> str:
    found = row["margin_against_coconut"]
    if not found or not found["margin_difference"]:
        return ""
    return nats(Interval(**found["margin_difference"]))
