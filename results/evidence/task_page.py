"""The numbers of the evidence: means over seeds, with intervals, of the units' JSON files.

    for page in read_units(Path("results/evidence")):
        page.difference(page.rungs[0], "both").low

Differences are to the plain Coconut of the same rung, in points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from plan import MEMORY_RATES, PLANS, STEP_SIZES
from scipy.stats import binomtest

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    detectable_difference,
    interval_over_seeds,
    proportion_interval,
    standard_error,
    unpaired_p,
)

Json = dict[str, Any]

NORMAL = 1.96


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % intervals."""

    value: float
    over_problems: float
    """Half the width of the interval over problems."""
    over_seeds: float | None
    """Half the width of the interval over seeds; None with fewer than three seeds, because
    Student's interval of two values says almost nothing."""

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

    @property
    def p_value(self) -> float:
        """Two-sided, over problems."""
        return unpaired_p(self.value, self.over_problems / NORMAL)


def mean(values: Sequence[float], errors: Sequence[float]) -> Mean:
    """The mean of values, one for each seed, whose standard errors over problems are `errors`."""
    num = len(values)
    over_problems = NORMAL * math.sqrt(sum(error**2 for error in errors)) / num
    seeds = interval_over_seeds(values)
    over_seeds = None if seeds is None else (seeds.high - seeds.low) / 2
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
        for unit in units:
            _check(unit, self.rungs, self.num)

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

    def seed_differences(self, rung: str, name: str) -> str:
        """For each seed, the difference to plain Coconut in points, with a star if p < 0.05."""
        texts = []
        for row in self.row(rung, name):
            changed = row["gained"] + row["lost"]
            p_value = binomtest(row["gained"], changed).pvalue if changed else 1.0
            points = 100 * (row["gained"] - row["lost"]) / self.num
            texts.append(f"{points:+.1f}" + ("\\*" if p_value < 0.05 else ""))
        return ", ".join(texts)

    def disagree(self, rung: str, name: str) -> bool:
        """Whether one seed is significantly better than plain Coconut and another one worse."""
        text = self.seed_differences(rung, name).split(", ")
        return {value[0] for value in text if value.endswith("*")} == {"+", "-"}

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
        plain_SN = np.array([bits(row["correct"], self.num) for row in self.row(rung, "Coconut")])
        own_SN = np.array(
            [bits(unit["baselines"][part]["correct"], self.num) for unit in self.units]
        )
        # All seeds answer the same problems, so a problem's mean over seeds is the sample.
        differences_N = 100 * (own_SN - plain_SN).mean(axis=0)
        half = NORMAL * standard_error(differences_N)
        return 100 * float(own_SN.mean()), Mean(float(differences_N.mean()), half, None)

    def backbones(self, room: float) -> list[tuple[Json, str]]:
        """The unit and rung of each backbone whose accuracy neither chance nor the ceiling hides.

        Its plain Coconut is significantly better than chance, and `room` points below 100 %.
        """
        return [
            (unit, rung)
            for rung in self.rungs
            for unit, row in zip(self.units, self.row(rung, "Coconut"), strict=True)
            if proportion_interval(bits(row["correct"], self.num)).low > self.plan.chance
            and 100 * row["accuracy"] + room <= 100
        ]

    def backwards(self, row: str, contrast: str) -> list[bool]:
        """For each backbone with a negative step in `row`: whether it beats no search on dev.

        It does if the 95 % interval of its margin on the validation problems excludes 0.
        """
        better = []
        for rung in self.rungs:
            for unit, judged in zip(self.units, self.row(rung, row), strict=True):
                if judged["setting"]["step_size"] >= 0:
                    continue
                (chosen,) = [
                    setting
                    for setting in self.rung(unit, rung)["dev"][contrast]
                    if all(
                        setting[name] == judged["setting"][name]
                        for name in ("memory_rate", "step_size")
                    )
                ]
                better.append(chosen["margin_difference"]["low"] > 0)
        return better

    def by_seed(self, rung: str) -> list[float]:
        """Accuracy of plain Coconut in per cent, for each seed."""
        return [100 * row["accuracy"] for row in self.row(rung, "Coconut")]

    def written(self, part: str, seed: int) -> Interval:
        """Accuracy of a part by its full text, as a fraction."""
        (unit,) = [unit for unit in self.units if unit["seed"] == seed]
        return proportion_interval(bits(unit["baselines"][part]["correct"], self.num))

    def at_chance(self) -> list[int]:
        """The seeds whose finished Coconut is not significantly better than chance."""
        return [
            seed
            for seed in self.seeds
            if self.written("Coconut, finished", seed).low <= self.plan.chance
        ]

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


def _check(unit: Json, rungs: Sequence[str], num: int) -> None:
    """Raises LatentRefError if a unit has other rungs or problems than the first unit."""
    own = [rung["name"] for rung in unit["rungs"]]
    sizes = {num, *(rung["problems"] for rung in unit["rungs"])}
    if own != list(rungs) or len(sizes) > 1:
        raise LatentRefError(
            f"seed {unit['seed']} has the rungs {', '.join(own)} on {max(sizes)} problems, but the "
            f"first seed has {', '.join(rungs)} on {num}; run unit.py again for one of them"
        )


def read_units(folder: Path) -> list[TaskPage]:
    """The finished units, by task."""
    pages = []
    for name in PLANS:
        paths = [folder / f"{name}-{seed}.json" for seed in PLANS[name].seeds]
        units = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
        if units:
            pages.append(TaskPage(name, units))
    return pages
