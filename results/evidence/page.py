"""Writes README.md and the figures from the units' JSON files beside this script.

    python results/evidence/page.py

`page.md.j2` holds the text of the page.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from plan import MEMORY_RATES, PLANS, STEP_SIZES

from lm_eval_latentref.evaluation.plots import figure_class
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    detectable_difference,
    proportion_interval,
)

HERE = Path(__file__).parent
Json = dict[str, Any]

REFINED = {
    "+ residual": "residual mixing alone",
    "+ search": "search alone, the paper's references",
    "both": "both, the paper's references",
    "recommended": "validation's recommendation",
    "control": "search, positive control",
    "self-contrast": "search, self-contrast",
}
NORMAL = 1.96
PAPERS = ("+ residual", "+ search", "both")


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % intervals."""

    value: float
    over_problems: float
    """Half the width of the interval over problems."""
    over_seeds: float | None
    """Half the width of the interval over seeds; None with one seed."""

    @property
    def low(self) -> float:
        return self.value - self.over_problems

    @property
    def high(self) -> float:
        return self.value + self.over_problems

    @property
    def sign(self) -> int:
        """1 or -1 if the interval over problems excludes 0, else 0."""
        return (self.low > 0) - (self.high < 0)


def mean(values: Sequence[float], errors: Sequence[float]) -> Mean:
    """The mean of values, one for each seed, whose standard errors over problems are `errors`."""
    from scipy.stats import t

    num = len(values)
    over_problems = NORMAL * math.sqrt(sum(error**2 for error in errors)) / num
    over_seeds = None
    if num > 1:
        over_seeds = float(t.ppf(0.975, num - 1)) * float(np.std(values, ddof=1)) / math.sqrt(num)
    return Mean(float(np.mean(values)), over_problems, over_seeds)


def bits(text: str, num: int) -> np.ndarray:
    """The inverse of `unit._packed`: 1 for right and 0 for wrong answers, as an array (num,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:num].astype(float)


def interval_error(interval: Json) -> float:
    return (interval["high"] - interval["low"]) / 2 / NORMAL


class TaskPage:
    """The units of one task, one for each seed."""

    def __init__(self, name: str, units: Sequence[Json]) -> None:
        self.name, self.units, self.plan = name, units, PLANS[name]
        self.seeds = [unit["seed"] for unit in units]
        self.missing = [seed for seed in self.plan.seeds if seed not in self.seeds]
        parts = units[0]["baselines"]["Coconut, finished"]["by_steps"].values()
        self.num = sum(part["num"] for part in parts)
        self.rungs = [rung["name"] for rung in units[0]["rungs"]]

    def rung(self, unit: Json, name: str) -> Json:
        return next(rung for rung in unit["rungs"] if rung["name"] == name)

    def row(self, rung: str, name: str) -> list[Json]:
        """A row of the table, for each seed."""
        return [self.rung(unit, rung)["rows"][name] for unit in self.units]

    def accuracy(self, rung: str, name: str) -> float:
        """Accuracy in per cent, averaged over seeds."""
        return 100 * float(np.mean([row["accuracy"] for row in self.row(rung, name)]))

    def difference(self, rung: str, name: str, *, margins: bool = False) -> Mean:
        """Difference to the rung's plain Coconut: accuracy in points, or margins in nats."""
        scale, key = (1, "margin_difference") if margins else (100, "difference")
        intervals = [row[key] for row in self.row(rung, name)]
        return mean(
            [scale * interval["mean"] for interval in intervals],
            [scale * interval_error(interval) for interval in intervals],
        )

    def relative(self, rung: str, name: str) -> float:
        """The difference to plain Coconut in per cent of plain Coconut's accuracy."""
        plain = self.accuracy(rung, "Coconut")
        return 100 * self.difference(rung, name).value / plain if plain else math.nan

    def flips(self, rung: str, name: str) -> tuple[int, int]:
        """The numbers of answers that became right and that became wrong, over all seeds."""
        rows = self.row(rung, name)
        return sum(row["gained"] for row in rows), sum(row["lost"] for row in rows)

    def settings(self, rung: str, name: str) -> str:
        """The settings chosen by validation, for each seed."""
        settings = [row["setting"] for row in self.row(rung, name)]
        return "; ".join(
            f"{setting['memory_rate']:g}, {setting['step_size']:g}" for setting in settings
        )

    def baseline(self, rung: str, part: str) -> tuple[float, Mean]:
        """Accuracy of a part by its full text, and the difference to the rung's plain Coconut."""
        values, errors, accuracies = [], [], []
        for unit in self.units:
            plain = bits(self.rung(unit, rung)["rows"]["Coconut"]["correct"], self.num)
            own = bits(unit["baselines"][part]["correct"], self.num)
            values.append(100 * float((own - plain).mean()))
            errors.append(100 * float((own - plain).std(ddof=1)) / math.sqrt(self.num))
            accuracies.append(100 * float(own.mean()))
        return float(np.mean(accuracies)), mean(values, errors)

    def written(self, part: str) -> Interval:
        """Accuracy of a part by its full text, as a fraction, on the problems of the first seed."""
        return proportion_interval(bits(self.units[0]["baselines"][part]["correct"], self.num))

    def baselines(self, rung: str) -> dict[str, str]:
        """The parts of the set that are shown beside a rung, by the names of their rows."""
        (pause,) = [planned.pause for planned in self.plan.rungs if planned.name == rung]
        return {
            "No-CoT": "No-CoT",
            "CoT (the strong reference)": "CoT",
            "CoT (the weak reference)": "CoT, weak reference",
            "pause tokens, as much training": f"pause {pause}",
            "Coconut, finished (the control's strong reference)": "Coconut, finished",
        }

    def steps(self) -> list[str]:
        return list(self.units[0]["rungs"][0]["rows"]["Coconut"]["by_steps"])

    def by_steps(self, rung: str, name: str, steps: str) -> tuple[int, float, float]:
        """Of problems with `steps` steps: number, accuracy in per cent, difference in points."""
        parts = [row["by_steps"][steps] for row in self.row(rung, name)]
        changes = [(part["gained"] - part["lost"]) / part["num"] for part in parts]
        accuracy = float(np.mean([part["accuracy"] for part in parts]))
        return parts[0]["num"], 100 * accuracy, 100 * float(np.mean(changes))

    def line(self, rung: str, contrast: str) -> list[tuple[float, Mean]]:
        """Step sizes and differences in points on the test problems, without residual mixing."""
        lines = [self.rung(unit, rung)["eta"][contrast] for unit in self.units]
        return [
            (
                points[0]["step_size"],
                mean(
                    [100 * point["difference"]["mean"] for point in points],
                    [100 * interval_error(point["difference"]) for point in points],
                ),
            )
            for points in zip(*lines, strict=True)
        ]

    def grid(self, rung: str) -> list[list[float]]:
        """Mean differences on the dev problems in points, by memory rate and step size."""
        rates, sizes = [0.0, *MEMORY_RATES], sorted([0.0, *STEP_SIZES])
        values: dict[tuple[float, float], list[float]] = {}
        for unit in self.units:
            for setting in self.rung(unit, rung)["dev"]["paper"]:
                key = setting["memory_rate"], setting["step_size"]
                values.setdefault(key, []).append(100 * setting["difference"]["mean"])
        return [
            [float(np.mean(values.get((rate, size), [math.nan]))) for size in sizes]
            for rate in rates
        ]

    def cell(self, rung: str, rate: float, size: float) -> float:
        """One cell of `grid`."""
        return self.grid(rung)[[0.0, *MEMORY_RATES].index(rate)][
            sorted([0.0, *STEP_SIZES]).index(size)
        ]

    def earlier(self, rung: str) -> str:
        """The epoch that is the weak reference of self-contrast."""
        (earlier,) = [planned.earlier for planned in self.plan.rungs if planned.name == rung]
        return earlier

    def sign_of_eta(self, rung: str, contrast: str, size: float = 0.1) -> tuple[Mean, Mean]:
        """The differences for a step of this size towards strong, and for one away from it."""
        line = dict(self.line(rung, contrast))
        return line[size], line[-size]

    def detectable(self, rung: str, name: str, num: int) -> float:
        """The smallest difference in points that `num` problems detect, at the row's flip rate."""
        gained, lost = self.flips(rung, name)
        share = (gained + lost) / (self.num * len(self.units))
        return 100 * detectable_difference(num, discordant_share=share)

    def minutes(self, unit: Json) -> float:
        return sum(unit["training_seconds"].values()) / 60

    def command(self, unit: Json) -> str:
        return f"python results/evidence/unit.py {self.name} {unit['seed']} --work out/evidence"


def read_units(folder: Path) -> list[TaskPage]:
    """The finished units, by task."""
    pages = []
    for name in PLANS:
        paths = [folder / f"{name}-{seed}.json" for seed in PLANS[name].seeds]
        units = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
        if units:
            pages.append(TaskPage(name, units))
    return pages


def draw(page: TaskPage, path: Path) -> None:
    """Draws a column for each rung: differences by eta above, the grid of both options below."""
    figure = figure_class()(figsize=(5.2 * len(page.rungs), 8), layout="constrained")
    axes = figure.subplots(2, len(page.rungs), squeeze=False)
    colours = {
        "paper": ("tab:blue", "the paper's references"),
        "control": ("tab:orange", "control"),
    }
    for column, rung in enumerate(page.rungs):
        above = axes[0][column]
        above.axhline(0, color="black", linewidth=0.8)
        for contrast, (colour, label) in colours.items():
            line = sorted([*page.line(rung, contrast), (0.0, Mean(0.0, 0.0, None))])
            sizes, means = zip(*line, strict=True)
            above.plot(sizes, [mean.value for mean in means], "o-", color=colour, label=label)
            above.fill_between(
                sizes,
                [mean.low for mean in means],
                [mean.high for mean in means],
                color=colour,
                alpha=0.25,
            )
        above.set_xscale("symlog", linthresh=0.05)
        above.set_yscale("symlog", linthresh=1.0)  # shows small and large differences
        above.yaxis.set_major_formatter("{x:g}")
        above.set_xticks(sorted([0.0, *STEP_SIZES]), [f"{x:g}" for x in sorted([0.0, *STEP_SIZES])])
        above.tick_params(axis="x", labelrotation=60)
        above.set_title(f"{rung}: Coconut {page.accuracy(rung, 'Coconut'):.1f} %")
        above.set_xlabel("eta (units of d/2), alpha = 0, test problems")
        above.set_ylabel("points to plain Coconut")
        above.legend()
        _heat(axes[1][column], page.grid(rung), figure)
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


def _heat(axes: Any, values: list[list[float]], figure: Any) -> None:
    from matplotlib.colors import SymLogNorm

    bound = max(1.0, float(np.nanmax(np.abs(values))))
    norm = SymLogNorm(1.0, vmin=-bound, vmax=bound)
    image = axes.imshow(values, cmap="RdBu", norm=norm, aspect="auto")
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            colour = "white" if abs(norm(value) - 0.5) > 0.35 else "black"
            axes.text(
                column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=colour
            )
    sizes, rates = sorted([0.0, *STEP_SIZES]), [0.0, *MEMORY_RATES]
    axes.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_xlabel("eta (units of d/2), the paper's references, validation problems")
    axes.set_ylabel("alpha")
    bar = figure.colorbar(image, ax=axes, label="points to plain Coconut")
    bar.ax.yaxis.set_major_formatter("{x:g}")


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
        return "one seed"
    return f"[{mean.value - mean.over_seeds:+.1f}, {mean.value + mean.over_seeds:+.1f}]"


def count(pages: Sequence[TaskPage], row: str, sign: int) -> int:
    """The number of rungs on which the difference of `row` has this sign (0: includes 0)."""
    return sum(page.difference(rung, row).sign == sign for page in pages for rung in page.rungs)


def render(pages: Sequence[TaskPage]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    generated = [page for page in pages if not page.plan.is_published]
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
        "num_rungs": sum(len(page.rungs) for page in generated),
        "rungs": [(page, rung) for page in generated for rung in page.rungs],
    }
    return environment.get_template("page.md.j2").render(**helpers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="folder of units and page")
    folder = parser.parse_args().folder
    pages = read_units(folder)
    for page in pages:
        if page.rungs:
            draw(page, folder / f"{page.name}.png")
        if page.plan.is_published:
            draw_training(page, folder / f"{page.name}-training.png")
    (folder / "README.md").write_text(render(pages), encoding="utf-8")
    print(folder / "README.md")


if __name__ == "__main__":
    main()
