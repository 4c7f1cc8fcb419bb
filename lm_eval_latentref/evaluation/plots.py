"""Draws the heat map of a sweep with matplotlib, into a PNG file.

    heat_map(result.outcomes, "sweep.png", title="latentref_mathqa_mc_dev, 447 documents")

matplotlib is installed with the extra `plots`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.settings import Outcome, Setting


def heat_map(outcomes: Sequence[Outcome], path: str | os.PathLike[str], *, title: str) -> None:
    """Draws mean margins over memory rate and step size, with one panel for each T and S.

    A cell shows margin and accuracy with their standard errors; without an outcome it is blank.
    Raises LatentRefError if matplotlib is missing.
    """
    panels = _panels(outcomes)
    rates = sorted({outcome.setting.memory_rate for outcome in outcomes})
    sizes = sorted({outcome.setting.step_size for outcome in outcomes})
    width, height = 1.5 + 1.35 * len(sizes), 1.3 + 0.7 * len(rates)
    figure = figure_class()(figsize=(width, height * len(panels)), layout="constrained")
    margins = [outcome.margin for outcome in outcomes]
    for number, (steps, searches) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        cells = _cells(outcomes, steps, searches, rates, sizes)
        values = [[cell.margin if cell else float("nan") for cell in row] for row in cells]
        image = axes.imshow(values, vmin=min(margins), vmax=max(margins), aspect="auto")
        for row, members in enumerate(cells):
            for column, cell in enumerate(members):
                if cell:
                    bright = image.norm(cell.margin) > 0.5
                    _write(axes, column, row, cell, "black" if bright else "white")
        axes.set_xticks(range(len(sizes)), [f"{size:g}*d/2" if size else "0" for size in sizes])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_xlabel("search_step_size")
        axes.set_ylabel("memory_rate")
        axes.set_title(f"T = {steps}" + (f", S = {searches}" if searches > 1 else ""))
        figure.colorbar(image, ax=axes, label="mean margin (nats)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def figure_class() -> Any:
    """matplotlib's Figure, which needs no display; raises LatentRefError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LatentRefError(
            "no figure is drawn: matplotlib is missing; pip install 'lm-eval-latentref[plots]'"
        ) from error
    return Figure


def _panels(outcomes: Sequence[Outcome]) -> list[tuple[int, int]]:
    """The (T, S) of each panel; T without thoughts to refine are left out."""
    refined = {
        (outcome.setting.latent_steps, outcome.setting.search_steps)
        for outcome in outcomes
        if outcome.setting.latent_steps
    }
    searching = {
        (outcome.setting.latent_steps, outcome.setting.search_steps)
        for outcome in outcomes
        if outcome.setting.step_size
    }
    with_search = {steps for steps, _ in searching}
    # Settings without search have S = 1. They get a panel only if no setting of this T searches.
    return sorted(searching | {pair for pair in refined if pair[0] not in with_search}) or [(0, 1)]


def _cells(
    outcomes: Sequence[Outcome],
    steps: int,
    searches: int,
    rates: Sequence[float],
    sizes: Sequence[float],
) -> list[list[Outcome | None]]:
    by_setting = {outcome.setting: outcome for outcome in outcomes}
    return [
        [by_setting.get(Setting.of(steps, rate, size, searches)) for size in sizes]
        for rate in rates
    ]


def _write(axes: Any, column: int, row: int, outcome: Outcome, colour: str) -> None:
    text = (
        f"{outcome.margin:+.3f} ± {outcome.margin_error:.3f}\n"
        f"{100 * outcome.accuracy:.1f} ± {100 * outcome.accuracy_error:.1f} %"
    )
    axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
