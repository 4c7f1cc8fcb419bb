"""Makes README.md and the pictures of all units that lie beside this script.

    python results/evidence/page.py

Every figure on the page comes from the units' JSON files; `page.md.j2` holds the words.
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
from plan import MEMORY_RATES, PLANS, SEEDS, STEP_SIZES

from lm_eval_latentref.evaluation.plots import figure_class
from lm_eval_latentref.evaluation.statistics import detectable_difference

HERE = Path(__file__).parent
Json = dict[str, Any]

REFINED = {
    "+ residual": "residual mixing alone",
    "+ search": "search alone, the paper's references",
    "both": "both, the paper's references",
    "recommended": "what validation recommends",
    "control": "search, positive control",
    "self-contrast": "search, self-contrast",
}
NORMAL = 1.96
PAPERS = ("+ residual", "+ search", "both")


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with how far it can be trusted."""

    value: float
    over_problems: float
    """Half of the 95 % interval, problems drawn anew."""
    over_seeds: float | None
    """Likewise, seeds drawn anew; None with one seed."""

    @property
    def low(self) -> float:
        return self.value - self.over_problems

    @property
    def high(self) -> float:
        return self.value + self.over_problems

    @property
    def sign(self) -> int:
        """1 or -1 where the interval over problems leaves 0 out, else 0."""
        return (self.low > 0) - (self.high < 0)


def mean(values: Sequence[float], errors: Sequence[float]) -> Mean:
    """Of one value a seed, each with its standard error over problems."""
    from scipy.stats import t

    num = len(values)
    over_problems = NORMAL * math.sqrt(sum(error**2 for error in errors)) / num
    over_seeds = None
    if num > 1:
        over_seeds = float(t.ppf(0.975, num - 1)) * float(np.std(values, ddof=1)) / math.sqrt(num)
    return Mean(float(np.mean(values)), over_problems, over_seeds)


def bits(text: str, num: int) -> np.ndarray:
    """What `unit._packed` packed: 1 for a right answer."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:num].astype(float)


def interval_error(interval: Json) -> float:
    return (interval["high"] - interval["low"]) / 2 / NORMAL


class TaskPage:
    """The units of one task, seeds side by side."""

    def __init__(self, name: str, units: Sequence[Json]) -> None:
        self.name, self.units, self.plan = name, units, PLANS[name]
        self.seeds = [unit["seed"] for unit in units]
        self.num = units[0]["rungs"][0]["problems"]
        self.rungs = [rung.name for rung in self.plan.rungs]

    def rung(self, unit: Json, name: str) -> Json:
        return next(rung for rung in unit["rungs"] if rung["name"] == name)

    def row(self, rung: str, name: str) -> list[Json]:
        """A row of the table in each seed."""
        return [self.rung(unit, rung)["rows"][name] for unit in self.units]

    def accuracy(self, rung: str, name: str) -> float:
        """In per cent, over seeds."""
        return 100 * float(np.mean([each["accuracy"] for each in self.row(rung, name)]))

    def difference(self, rung: str, name: str, *, margins: bool = False) -> Mean:
        """To the rung's plain Coconut: in points, or of margins in nats."""
        scale, key = (1, "margin_difference") if margins else (100, "difference")
        values = [each[key] for each in self.row(rung, name)]
        return mean(
            [scale * each["mean"] for each in values],
            [scale * interval_error(each) for each in values],
        )

    def relative(self, rung: str, name: str) -> float:
        """The difference in per cent of plain Coconut's accuracy."""
        plain = self.accuracy(rung, "Coconut")
        return 100 * self.difference(rung, name).value / plain if plain else math.nan

    def flips(self, rung: str, name: str) -> tuple[int, int]:
        rows = self.row(rung, name)
        return sum(each["gained"] for each in rows), sum(each["lost"] for each in rows)

    def settings(self, rung: str, name: str) -> str:
        """What validation chose, seed by seed."""
        values = [each["setting"] for each in self.row(rung, name)]
        return "; ".join(f"{each['memory_rate']:g}, {each['step_size']:g}" for each in values)

    def baseline(self, rung: str, part: str) -> tuple[float, Mean]:
        """Accuracy of a part that writes, and its difference to the rung's plain Coconut."""
        values, errors, accuracies = [], [], []
        for unit in self.units:
            plain = bits(self.rung(unit, rung)["rows"]["Coconut"]["correct"], self.num)
            own = bits(unit["baselines"][part]["correct"], self.num)
            values.append(100 * float((own - plain).mean()))
            errors.append(100 * float((own - plain).std(ddof=1)) / math.sqrt(self.num))
            accuracies.append(100 * float(own.mean()))
        return float(np.mean(accuracies)), mean(values, errors)

    def baselines(self, rung: str) -> dict[str, str]:
        """The parts of the set that a rung is shown with, by the names of their rows."""
        (pause,) = [each.pause for each in self.plan.rungs if each.name == rung]
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
        """Problems of so many steps, accuracy in per cent and difference in points, over seeds."""
        parts = [each["by_steps"][steps] for each in self.row(rung, name)]
        changes = [(each["gained"] - each["lost"]) / each["num"] for each in parts]
        accuracy = float(np.mean([each["accuracy"] for each in parts]))
        return parts[0]["num"], 100 * accuracy, 100 * float(np.mean(changes))

    def line(self, rung: str, contrast: str) -> list[tuple[float, Mean]]:
        """Step size and difference in points on the test problems, without residual mixing."""
        lines = [self.rung(unit, rung)["eta"][contrast] for unit in self.units]
        return [
            (
                points[0]["step_size"],
                mean(
                    [100 * each["difference"]["mean"] for each in points],
                    [100 * interval_error(each["difference"]) for each in points],
                ),
            )
            for points in zip(*lines, strict=True)
        ]

    def grid(self, rung: str) -> list[list[float]]:
        """Differences on the dev problems in points, by memory rate and step size, over seeds."""
        rates, sizes = [0.0, *MEMORY_RATES], sorted([0.0, *STEP_SIZES])
        values: dict[tuple[float, float], list[float]] = {}
        for unit in self.units:
            for each in self.rung(unit, rung)["dev"]["paper"]:
                key = each["memory_rate"], each["step_size"]
                values.setdefault(key, []).append(100 * each["difference"]["mean"])
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
        """The epoch that self-contrast has as its weak reference."""
        (earlier,) = [each.earlier for each in self.plan.rungs if each.name == rung]
        return earlier

    def sign_of_eta(self, rung: str, contrast: str, size: float = 0.1) -> tuple[Mean, Mean]:
        """The differences at the step of this size towards strong, and away from it."""
        line = dict(self.line(rung, contrast))
        return line[size], line[-size]

    def detectable(self, rung: str, name: str, num: int) -> float:
        """The smallest difference in points that `num` problems would show, at the row's flips."""
        gained, lost = self.flips(rung, name)
        share = (gained + lost) / (self.num * len(self.units))
        return 100 * detectable_difference(num, discordant_share=share)

    def minutes(self, unit: Json) -> float:
        return sum(unit["training_seconds"].values()) / 60

    def command(self, unit: Json) -> str:
        return f"python results/evidence/unit.py {self.name} {unit['seed']} --work out/evidence"


def read_units(folder: Path) -> list[TaskPage]:
    """All units that are there, by task."""
    pages = []
    for name in PLANS:
        paths = [folder / f"{name}-{seed}.json" for seed in SEEDS]
        units = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
        if units:
            pages.append(TaskPage(name, units))
    return pages


def draw(page: TaskPage, path: Path) -> None:
    """One column a rung: differences against eta above, the grid of both options below."""
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
            above.plot(sizes, [each.value for each in means], "o-", color=colour, label=label)
            above.fill_between(
                sizes,
                [each.low for each in means],
                [each.high for each in means],
                color=colour,
                alpha=0.25,
            )
        above.set_xscale("symlog", linthresh=0.05)
        above.set_yscale("symlog", linthresh=1.0)  # small differences count, large ones stay
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


def seeds_interval(mean: Mean) -> str:
    if mean.over_seeds is None:
        return "one seed"
    return f"[{mean.value - mean.over_seeds:+.1f}, {mean.value + mean.over_seeds:+.1f}]"


def count(pages: Sequence[TaskPage], row: str, sign: int) -> int:
    """Rungs on which `row` differs from plain Coconut in this direction beyond its interval."""
    return sum(page.difference(rung, row).sign == sign for page in pages for rung in page.rungs)


def render(pages: Sequence[TaskPage]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    helpers: dict[str, Callable[..., Any] | Any] = {
        "bounds": bounds,
        "signed": signed,
        "seeds_interval": seeds_interval,
        "count": count,
        "pages": pages,
        "refined": REFINED,
        "papers": PAPERS,
        "seeds": SEEDS,
        "num_rungs": sum(len(page.rungs) for page in pages),
        "rungs": [(page, rung) for page in pages for rung in page.rungs],
    }
    return environment.get_template("page.md.j2").render(**helpers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="of the units and the page")
    folder = parser.parse_args().folder
    pages = read_units(folder)
    for page in pages:
        draw(page, folder / f"{page.name}.png")
    (folder / "README.md").write_text(render(pages), encoding="utf-8")
    print(folder / "README.md")


if __name__ == "__main__":
    main()
