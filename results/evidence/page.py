"""Writes README.md and the figures from the units' JSON files beside this script.

    python results/evidence/page.py

`page.md.j2` holds the text of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from pictures import draw, draw_overview, draw_training
from task_page import Mean, TaskPage, read_units

from lm_eval_latentref.evaluation.statistics import Interval, holm

HERE = Path(__file__).parent
REFINED = {
    "+ residual": "residual mixing alone",
    "+ search": "search alone, the paper's references",
    "both": "residual mixing and search, the paper's references",
    "recommended": "validation's recommendation",
    "control": "search, positive control",
    "self-contrast": "search, self-contrast",
}
PAPERS = ("+ residual", "+ search", "both")
PAPER_GAIN = 40.20 - 38.25
"""The gain in points that arXiv:2506.08552 reports on MathQA with GPT-2."""


def signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}"


def bounds(mean: Mean, digits: int = 1) -> str:
    """ "+1.2 [+0.3, +2.1]", the interval over problems."""
    return f"{mean.value:+.{digits}f} [{mean.low:+.{digits}f}, {mean.high:+.{digits}f}]"


def percent(interval: Interval) -> str:
    """ "51.0 % [47.0, 55.0]"."""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:.1f} % [{low:.1f}, {high:.1f}]"


def seeds_interval(mean: Mean) -> str:
    if mean.over_seeds is None:
        return ""
    return f"; [{mean.value - mean.over_seeds:+.1f}, {mean.value + mean.over_seeds:+.1f}]"


def count(pages: Sequence[TaskPage], row: str, sign: int) -> int:
    """The number of rungs on which the difference of `row` has this sign (0: includes 0)."""
    return sum(page.difference(rung, row).sign == sign for page in pages for rung in page.rungs)


def corrected(pages: Sequence[TaskPage]) -> dict[str, list[int]]:
    """For each row, the numbers of rungs on which it is better and worse by Holm's correction.

    It corrects for the tests of all rows on all rungs.
    """
    means = [
        (name, page.difference(rung, name))
        for name in REFINED
        for page in pages
        for rung in page.rungs
    ]
    numbers = {name: [0, 0] for name in REFINED}
    p_values = holm([mean.p_value for _, mean in means])
    for (name, mean), p_value in zip(means, p_values, strict=True):
        if p_value < 0.05:
            numbers[name][mean.value < 0] += 1
    return numbers


def disagreements(pages: Sequence[TaskPage]) -> list[str]:
    """The rows that are significantly better on one seed and worse on another."""
    return [
        f"{name} on {page.name} {rung}"
        for page in pages
        for rung in page.rungs
        for name in REFINED
        if page.disagree(rung, name)
    ]


def cells(rungs: Sequence[tuple[TaskPage, str]], rate: float, size: float) -> str:
    """The smallest and the largest difference of this setting on the dev problems, in points."""
    values = [page.cell(rung, rate, size) for page, rung in rungs]
    return f"{signed(min(values))} to {signed(max(values))}"


def largest(rungs: Sequence[tuple[TaskPage, str]], row: str) -> str:
    """The largest difference of a row over the rungs, in points."""
    return signed(max(page.difference(rung, row).value for page, rung in rungs))


def towards(rungs: Sequence[tuple[TaskPage, str]], contrast: str) -> str:
    """The largest difference of a step of 0.1 d/2 towards the strong reference, in points."""
    return signed(max(page.sign_of_eta(rung, contrast)[0].value for page, rung in rungs))


def visible(rungs: Sequence[tuple[TaskPage, str]], row: str, num: int) -> int:
    """On how many rungs `num` problems would detect the difference of a row."""
    return sum(
        abs(page.difference(rung, row).value) >= page.detectable(rung, row, num)
        for page, rung in rungs
    )


def excluded(rungs: Sequence[tuple[TaskPage, str]], row: str, gain: float) -> tuple[int, int]:
    """On how many rungs the interval over problems excludes a gain; on how many it has room."""
    roomy = [(page, rung) for page, rung in rungs if page.accuracy(rung, "Coconut") + gain <= 100]
    return sum(page.difference(rung, row).high < gain for page, rung in roomy), len(roomy)


def of_backbones(pages: Sequence[TaskPage], row: str, room: float) -> tuple[int, str]:
    """The number of backbones between chance and the ceiling, and their differences in points."""
    values = [
        100 * page.rung(unit, rung)["rows"][row]["difference"]["mean"]
        for page in pages
        for unit, rung in page.backbones(room)
    ]
    return len(values), f"{signed(min(values))} to {signed(max(values))}" if values else "-"


def backwards(pages: Sequence[TaskPage], row: str, contrast: str) -> tuple[int, int]:
    """On how many backbones validation chose a negative step, and on how many beyond its noise."""
    better = [value for page in pages for value in page.backwards(row, contrast)]
    return len(better), sum(better)


def signs(rungs: Sequence[tuple[TaskPage, str]], contrast: str) -> dict[str, int]:
    """On how many rungs a step of 0.1 d/2 significantly changes accuracy, by direction and sign."""
    numbers = dict.fromkeys(("towards +", "towards -", "away +", "away -"), 0)
    for page, rung in rungs:
        for direction, mean in zip(
            ("towards", "away"), page.sign_of_eta(rung, contrast), strict=True
        ):
            if mean.sign:
                numbers[f"{direction} {'+' if mean.sign > 0 else '-'}"] += 1
    return numbers


def render(pages: Sequence[TaskPage]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    generated = [page for page in pages if not page.plan.is_published]
    numbers = corrected(generated)
    helpers: dict[str, Callable[..., Any] | Any] = {
        "bounds": bounds,
        "signed": signed,
        "percent": percent,
        "seeds_interval": seeds_interval,
        "count": count,
        "pages": generated,
        "published": [page for page in pages if page.plan.is_published],
        "refined": REFINED,
        "papers": PAPERS,
        "corrected": numbers,
        "papers_corrected": [sum(numbers[name][k] for name in PAPERS) for k in (0, 1)],
        "paper_gain": PAPER_GAIN,
        "signs": signs,
        "disagreements": disagreements,
        "cells": cells,
        "largest": largest,
        "towards": towards,
        "visible": visible,
        "excluded": excluded,
        "of_backbones": of_backbones,
        "backwards": backwards,
        "num_backbones": sum(len(page.rungs) * len(page.units) for page in generated),
        "num_rungs": sum(len(page.rungs) for page in generated),
        "rungs": [(page, rung) for page in generated for rung in page.rungs],
    }
    return environment.get_template("page.md.j2").render(**helpers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="folder of units and page")
    folder = parser.parse_args().folder
    pages = read_units(folder)
    draw_overview([page for page in pages if page.rungs], folder / "overview.png")
    for page in pages:
        if page.rungs:
            draw(page, folder / f"{page.name}.png")
        if page.plan.is_published:
            draw_training(page, folder / f"{page.name}-training.png")
    (folder / "README.md").write_text(render(pages), encoding="utf-8")
    print(folder / "README.md")


if __name__ == "__main__":
    main()
