"""The page of several studies of the same sets, with the paper's figures beside ours.

    page = overview_page(studies, pages, command="latentref study ...")

Each study also has its own page in a subfolder. All pages are made from the same JSON values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.checkpoints.packaged import local_folder
from lm_eval_latentref.evaluation.report import (
    OVERVIEW,
    RESULTS,
    Content,
    margin_gain,
    origin,
    page,
    percent,
    plus_minus,
    points,
    table,
)
from lm_eval_latentref.evaluation.statistics import mcnemar, paired_interval
from lm_eval_latentref.evaluation.study_options import BASELINES, COCONUT, WITHOUT_STEPS
from lm_eval_latentref.evaluation.study_sets import distinct_names
from lm_eval_latentref.evaluation.wording import markdown

REFINED = ("+ residual", "+ search", "both")

Contents = Mapping[str, Content]
"""A study's JSON values by task."""

SOURCE = "Wang et al., arXiv:2506.08552: GPT-2 (117M), exact match, mean of 3 seeds"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The paper's results on one benchmark."""

    accuracy: Mapping[str, float]
    """Accuracy in percent, by row."""
    exact: Collection[str] = ()
    """Rows from the paper's table; values of other rows are read off its figure."""
    tokens: Mapping[str, float] = field(default_factory=dict)
    """Generated tokens per query, by row; "both" is latent reasoning."""


_MATHQA_TABLE = {"Coconut": 38.25, "+ residual": 40.02, "+ search": 39.79, "both": 40.20}


def _figure(no_cot: float, cot: float, coconut: float, both: float) -> dict[str, float]:
    return {"No-CoT": no_cot, "CoT": cot, "Coconut": coconut, "both": both}


REPORTED: Mapping[str, Reported] = {
    "latentref_gsm8k": Reported(accuracy=_figure(16.5, 42.8, 36.3, 36.9)),
    "latentref_mathqa": Reported(
        accuracy={**_figure(23.0, 35.3, 38.3, 40.2), **_MATHQA_TABLE},
        exact=_MATHQA_TABLE,
        tokens={"CoT": 66.71, "both": 5.02},
    ),
    "latentref_aqua": Reported(
        accuracy=_figure(22.8, 24.7, 28.5, 31.3), tokens={"CoT": 72.73, "both": 5.31}
    ),
    "latentref_strategyqa": Reported(accuracy=_figure(50.6, 57.5, 59.4, 62.0)),
    "latentref_prosqa": Reported(accuracy=_figure(75.0, 77.5, 82.0, 85.7)),
}
"""The paper's results, by our task for the same benchmark."""

OTHER_BACKBONES: Mapping[str, Mapping[str, float]] = {
    "Qwen-2.5 1.5B": {"Coconut": 42.29, "both": 43.04},
    "LLaMA-3.2 3B": {"Coconut": 39.30, "both": 41.10},
}
"""The paper's accuracy of other backbones on MathQA with LoRA, in percent."""


def place(task: str) -> str:
    """The path of a task's results.json, relative to the folder of the overview."""
    return f"{task.removeprefix('latentref_')}/{RESULTS}"


def overview_json(studies: Contents, pages: Mapping[str, str], *, command: str) -> dict[str, Any]:
    """The paper's figures, each task's mean over the sets, and all problems pooled.

    Args:
        pages: the path of each task's results.json, relative to the overview's.
    """
    names = ("problems", "chance", "majority_answer", "mean_over_sets")
    return {
        "format": OVERVIEW,
        "command": command,
        "tasks": {
            task: {
                "results": pages[task],
                **{name: study[name] for name in names},
                "reported": dataclasses.asdict(REPORTED[task]) if task in REPORTED else None,
            }
            for task, study in studies.items()
        },
        "pooled": {
            part.folder: {
                name: pooled(studies, part.number, name) for name in _refined(studies, part.number)
            }
            for part in _sets(studies)
        },
        "reported_by": SOURCE,
    }


def pooled(studies: Contents, number: int, name: str) -> dict[str, Any]:
    """Row `name` of set `number` compared with Coconut, over the problems of all benchmarks.

    All problems have the same weight, so large tasks count most. If a benchmark has several
    prompts, only the first is used, because their problems are the same.
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


def benchmarks(studies: Contents) -> dict[str, Content]:
    """The first study of each benchmark, by the name of its plain task."""
    by_benchmark: dict[str, Content] = {}
    for task, study in studies.items():
        by_benchmark.setdefault(task.removesuffix("_mc").removesuffix("_harness"), study)
    return by_benchmark


def overview_page(studies: Contents, pages: Mapping[str, str], *, command: str) -> str:
    """The page: accuracies, gains of refinement, the paper's figures, costs, tried settings."""
    made: list[Any] = []
    for study in studies.values():
        made += [origins for origins in study["made_with"] if origins not in made]
    folders = list(dict.fromkeys(part.folder for part in _sets(studies)))
    are_seeds = all(study.get("sets_are_seeds", True) for study in studies.values())
    return page(
        "overview.md.j2",
        folders=", ".join(distinct_names(folders)),
        notes=[note for folder in folders if (note := _note(folder))],
        studies=studies,
        command=command,
        sets=f"{len(_sets(studies))} {'training seeds' if are_seeds else 'sets'}",
        num_sets=len(_sets(studies)),
        accuracy=_accuracy(studies, pages),
        gains=_gains(studies),
        source=SOURCE,
        reported=_reported(studies),
        others=OTHER_BACKBONES,
        costs=_costs(studies),
        folder_of={task: Path(at).parent.as_posix() for task, at in pages.items()},
        origin=origin(made),
    )


def _note(folder: str) -> str | None:
    """The note in the set's latentref.json; None without a note."""
    place = local_folder(folder)
    path = place and place / MANIFEST_NAME
    return read_manifest(path).note if path and path.is_file() else None


@dataclasses.dataclass(frozen=True)
class _Set:
    number: int
    folder: str


def _sets(studies: Contents) -> list[_Set]:
    first = next(iter(studies.values()))
    return [_Set(number, trained["folder"]) for number, trained in enumerate(first["sets"])]


def _names(studies: Contents) -> list[str]:
    """All rows of the studies: those of the paper's table first."""
    present = dict.fromkeys(name for study in studies.values() for name in study["mean_over_sets"])
    rows = [f"{name}{suffix}" for name in (*BASELINES, COCONUT) for suffix in ("", WITHOUT_STEPS)]
    usual = [name for name in (*rows, *REFINED) if name in present]
    return [*usual, *(name for name in present if name not in usual)]


def _refined(studies: Contents, number: int) -> list[str]:
    """The refined rows that set `number` has in any task; a grid may leave some out."""
    present = {
        name
        for study in studies.values()
        for name, row in study["sets"][number]["rows"].items()
        if row["setting"] and name != COCONUT
    }
    return [name for name in _names(studies) if name in present]


def _accuracy(studies: Contents, pages: Mapping[str, str]) -> str:
    rows = []
    for task, study in studies.items():
        folder, means = Path(pages[task]).parent.as_posix(), study["mean_over_sets"]
        chance = "" if study["chance"] is None else percent(study["chance"])
        cells = [f"[{task}]({folder}/README.md)", str(study["problems"]), chance]
        cells.append(percent(study["majority_answer"]))
        names = _names(studies)
        rows.append([*cells, *(plus_minus(means[n]) if n in means else "" for n in names)])
    return table(["task", "problems", "chance", "majority", *_names(studies)], rows)


def _gains(studies: Contents) -> str:
    rows = []
    for task, study in studies.items():
        refined = {name for part in _sets(studies) for name in _refined({task: study}, part.number)}
        for name in (name for name in study["mean_over_sets"] if name in refined):
            of_sets = [part["rows"][name] for part in study["sets"] if name in part["rows"]]
            tests = [row["against_coconut"]["test"] for row in of_sets]
            mean = study["mean_over_sets"][name]
            difference = points(mean["against_coconut"])
            if mean.get("over_seeds"):
                difference += f", over seeds {points(mean['over_seeds'])}"
            p_values = ", ".join(f"{test['p_value']:.3g}" for test in tests)
            margins = "; ".join(filter(None, map(margin_gain, of_sets)))
            rows.append((task, name, difference, p_values, margins))
    if len(benchmarks(studies)) > 1:
        for part in _sets(studies):
            for name in _refined(studies, part.number):
                total = pooled(studies, part.number, name)
                difference, p_value = points(total["difference"]), total["test"]["p_value"]
                label = markdown(f"all tasks, {part.folder}")
                rows.append((label, name, difference, f"{p_value:.3g}", ""))
    return table(["task", "row", "accuracy", "p", "margin"], rows)


def _reported(studies: Contents) -> str:
    """A table of our accuracies and the paper's."""
    names, rows = _names(studies), []
    for task, study in studies.items():
        means = study["mean_over_sets"]
        ours = [percent(means[n]["accuracy"]) if n in means else "" for n in names]
        gain = points(means["both"]["against_coconut"]) if "both" in means else ""
        rows.append([task, "here", *ours, gain])
        if paper := REPORTED.get(task):
            values = paper.accuracy
            theirs = [
                f"{'' if name in paper.exact else '~'}{values[name]:g}" if name in values else ""
                for name in names
            ]
            approximate = "" if {"both", COCONUT} <= set(paper.exact) else "~"
            gain = f"{approximate}{values['both'] - values[COCONUT]:+.2f}"
            rows.append([task, "paper", *theirs, gain])
    return table(["task", "", *names, "gain of both over Coconut, points"], rows)


_COSTS: Mapping[str, Callable[[Content], str]] = {
    "generated tokens a query": lambda row: f"{row['tokens_per_problem']:.2f}",
    "seconds a document": lambda row: f"{row['seconds_per_problem']:.5f}",
    "peak memory, GB": lambda row: (
        "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.2f}"
    ),
}


def _costs(studies: Contents) -> str:
    names, rows = _names(studies), []
    for task, study in studies.items():
        for label, text_of in _COSTS.items():
            cells = []
            for name in names:
                of_sets = [part["rows"][name] for part in study["sets"] if name in part["rows"]]
                cells.append(" / ".join(filter(None, map(text_of, of_sets))))
            rows.append([task, label, *cells])
        if (paper := REPORTED.get(task)) and paper.tokens:
            theirs = paper.tokens
            cells = [f"{theirs[name]:g}" if name in theirs else "" for name in names]
            rows.append([task, "the paper's tokens", *cells])
    return table(["task", "", *names], rows)
