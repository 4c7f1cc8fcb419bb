"""The pictures of the evidence page.

draw_overview(pages, Path("overview.png"))
draw(page, Path("graph.png"))
draw_training(page, Path("prosqa-letters-training.png"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import MEMORY_RATES, STEP_SIZES
from task_page import Mean, TaskPage

from lm_eval_latentref.evaluation.plots import differences_map, figure_class

CONTRASTS = {
    "paper": ("tab:blue", "the paper's references"),
    "control": ("tab:orange", "control"),
}
"""For each contrast, the colour and the name of its lines."""

LARGEST_SHOWN = 0.3
"""The overview shows steps up to this size; the effect of a larger one would hide the others."""


def draw_overview(pages: Sequence[TaskPage], path: Path) -> None:
    """Draws differences against eta, a panel for each task and a line for each rung."""
    figure = figure_class()(figsize=(5 * len(pages), 4), layout="constrained")
    axes = figure.subplots(1, len(pages), squeeze=False, sharey=True)[0]
    for panel, page in zip(axes, pages, strict=True):
        panel.axhline(0, color="black", linewidth=0.8)
        for contrast, (colour, label) in CONTRASTS.items():
            for number, rung in enumerate(page.rungs):
                line = [point for point in _line(page, rung, contrast) if _is_shown(point[0])]
                _band(panel, line, colour, label if number == 0 else None)
        panel.set_title(f"{page.name}: {len(page.rungs)} rungs")
        panel.set_xlabel("eta (units of d/2)")
    axes[0].set_ylabel("points to plain Coconut")
    axes[0].legend()
    figure.suptitle("Search alone, means over seeds; bands are 95 % intervals over problems")
    figure.savefig(path, dpi=110)


def _is_shown(size: float) -> bool:
    return abs(size) <= LARGEST_SHOWN


def _line(page: TaskPage, rung: str, contrast: str) -> list[tuple[float, Mean]]:
    return sorted([*page.line(rung, contrast), (0.0, Mean(0.0, 0.0, None))])


def _band(axes: Any, line: list[tuple[float, Mean]], colour: str, label: str | None) -> None:
    sizes, means = zip(*line, strict=True)
    axes.plot(sizes, [mean.value for mean in means], "o-", color=colour, label=label)
    low, high = [mean.low for mean in means], [mean.high for mean in means]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.25)


def draw(page: TaskPage, path: Path) -> None:
    """Draws a column for each rung: differences by eta above, the grid of both options below."""
    figure = figure_class()(figsize=(5.2 * len(page.rungs), 8), layout="constrained")
    axes = figure.subplots(2, len(page.rungs), squeeze=False)
    for column, rung in enumerate(page.rungs):
        above = axes[0][column]
        above.axhline(0, color="black", linewidth=0.8)
        for contrast, (colour, label) in CONTRASTS.items():
            _band(above, _line(page, rung, contrast), colour, label)
        above.set_xscale("symlog", linthresh=0.05)
        above.set_yscale("symlog", linthresh=1.0)  # shows small and large differences
        above.yaxis.set_major_formatter("{x:g}")
        above.set_xticks(sorted([0.0, *STEP_SIZES]), [f"{x:g}" for x in sorted([0.0, *STEP_SIZES])])
        above.tick_params(axis="x", labelrotation=60)
        above.set_title(f"{rung}: Coconut {page.accuracy(rung, 'Coconut'):.1f} %")
        above.set_xlabel("eta (units of d/2), alpha = 0, test problems")
        above.set_ylabel("points to plain Coconut")
        above.legend()
        _heat(axes[1][column], page.grid(rung))
    seeds = f"{len(page.seeds)} seed" + "s" * (len(page.seeds) > 1)
    figure.suptitle(f"{page.name}: {page.num} test problems, {seeds}; bands are 95 % intervals")
    figure.savefig(path, dpi=110)


def draw_training(page: TaskPage, path: Path) -> None:
    """Draws loss and validation accuracy of the first seed against epochs; lines divide stages."""
    unit = page.units[0]
    figure = figure_class()(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    start = 0
    for stage, losses in unit["losses"].items():
        epochs = range(start + 1, start + len(losses) + 1)
        above.plot(epochs, losses, ".-", color="tab:blue")
        below.plot(epochs, [100 * x for x in unit["accuracies"][stage]], ".-", color="tab:orange")
        above.text(start + 0.6, above.get_ylim()[1], stage, rotation=45, fontsize=8)
        start += len(losses)
        for axes in (above, below):
            axes.axvline(start + 0.5, color="lightgrey", linewidth=0.8)
    below.axhline(100 * page.plan.chance, color="black", linewidth=0.8, linestyle="--")
    above.set_ylabel("training loss, nats per token")
    below.set_ylabel("validation accuracy, %")
    below.set_xlabel("epoch; the dashed line is chance")
    figure.savefig(path, dpi=110)


def _heat(axes: Any, values: list[list[float]]) -> None:
    sizes, rates = sorted([0.0, *STEP_SIZES]), [0.0, *MEMORY_RATES]
    differences_map(
        axes,
        values,
        rows=[f"{rate:g}" for rate in rates],
        columns=[f"{size:g}" for size in sizes],
        linear=1.0,
        label="points to plain Coconut",
    )
    axes.set_xlabel("eta (units of d/2), the paper's references, validation problems")
    axes.set_ylabel("alpha")
