"""Draws the heat map of a sweep with matplotlib, into a PNG file.

    heat_map(result.outcomes, "sweep.png", plain=plain, title="latentref_mathqa_mc_dev")
    differences_map(axes, values, rows=["0", "0.1"], columns=["0", "1"], linear=1.0, label="points")

matplotlib is installed with the extra `plots`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.settings import Outcome, Setting
from lm_eval_latentref.evaluation.statistics import standard_error

LINEAR_NATS = 0.1
"""The scale of margins is linear up to this difference, so that pictures can be compared."""
LARGEST_PALE = 0.35
"""Text is black on colours that are at most this far from the middle of the scale."""


def heat_map(
    outcomes: Sequence[Outcome], path: str | os.PathLike[str], *, plain: Outcome, title: str
) -> None:
    """Draws differences to `plain` over memory rate and step size, a panel for each T and S.

    The colour is the difference of mean margins. A cell shows it and the difference of accuracies,
    each with its paired standard error; without an outcome it is blank. Raises LatentRefError if
    matplotlib is missing.
    """
    panels = _panels(outcomes)
    rates = sorted({outcome.setting.memory_rate for outcome in outcomes})
    sizes = sorted({outcome.setting.step_size for outcome in outcomes})
    width, height = 1.5 + 1.35 * len(sizes), 1.3 + 0.7 * len(rates)
    figure = figure_class()(figsize=(width, height * len(panels)), layout="constrained")
    largest = max(abs(outcome.margin - plain.margin) for outcome in outcomes)
    for number, (steps, searches) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        cells = _cells(outcomes, steps, searches, rates, sizes)
        differences_map(
            axes,
            [[cell.margin - plain.margin if cell else np.nan for cell in row] for row in cells],
            texts=[[_text(cell, plain) if cell else "" for cell in row] for row in cells],
            rows=[f"{rate:g}" for rate in rates],
            columns=[f"{size:g}*d/2" if size else "0" for size in sizes],
            linear=LINEAR_NATS,
            largest=largest,
            label="mean margin minus plain (nats)",
        )
        axes.set_xlabel("search_step_size")
        axes.set_ylabel("memory_rate")
        axes.set_title(f"T = {steps}" + (f", S = {searches}" if searches > 1 else ""))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def differences_map(
    axes: Any,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    linear: float,
    label: str,
    texts: Sequence[Sequence[str]] | None = None,
    largest: float | None = None,
) -> None:
    """Draws differences as cells: blue above 0, red below 0, white at 0 in the middle of the scale.

    Args:
        values: a number for each row and column; nan leaves the cell blank.
        rows, columns: the labels of the ticks.
        linear: the scale is linear up to this size, and logarithmic beyond it.
        label: the name of the scale.
        texts: what the cells show; None for the values with one digit.
        largest: the size at the ends of the scale; None for the largest of `values`.
    """
    from matplotlib.colors import SymLogNorm

    values_RC = np.array(values, dtype=float)
    bound = max(linear, float(np.nanmax(np.abs(values_RC))) if largest is None else largest)
    norm = SymLogNorm(linear, vmin=-bound, vmax=bound)
    image = axes.imshow(values_RC, cmap="RdBu", norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(values_RC):
        if np.isnan(value):
            continue
        text = f"{value:+.1f}" if texts is None else texts[row][column]
        colour = "white" if abs(norm(value) - 0.5) > LARGEST_PALE else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    bar = axes.figure.colorbar(image, ax=axes, label=label)
    bar.ax.yaxis.set_major_formatter("{x:g}")


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


def _text(outcome: Outcome, plain: Outcome) -> str:
    """The differences to `plain`; for `plain` itself its own values."""
    if outcome is plain:
        return f"plain: {plain.margin:+.3f}\n{100 * plain.accuracy:.1f} %"
    margins_N = np.array(outcome.margins) - np.array(plain.margins)
    correct_N = 100 * (np.array(outcome.correct, float) - np.array(plain.correct, float))
    return (
        f"{margins_N.mean():+.3f} ± {standard_error(margins_N):.3f}\n"
        f"{correct_N.mean():+.1f} ± {standard_error(correct_N):.1f} points"
    )
