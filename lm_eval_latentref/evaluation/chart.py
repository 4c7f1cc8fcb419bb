"""Computes the coordinates of an SVG chart of accuracy against cost, with the Pareto front.

    drawing = chart([("a", 2.0, 0.4, 0.01), ("b", 8.0, 0.5, 0.01)], "seconds per document")
    drawing.points[0].x, drawing.front

`templates/leaderboard.html.j2` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT, _WIDTH = 70.0, 760.0, 26.0, 340.0, 390.0, 860.0
_LOG_FROM = 20.0  # the ratio of costs above which the axis is logarithmic
_MAX_LABELS, _MAX_LABEL = 14, 30


@dataclass(kw_only=True)
class Point:
    """One row's point, with its error bar and label."""

    title: str
    label: str
    x: float
    y: float
    low: float | None
    high: float | None
    on_front: bool
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One mark of an axis: its position and label."""

    at: float
    text: str


@dataclass(kw_only=True)
class Chart:
    """The chart's contents, in units of its `width` and `height`."""

    label: str
    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    front: str
    """The Pareto front as the `points` of an SVG polyline."""
    missing: str
    """Names of rows that are not shown, because their cost or value is not known."""
    log: bool
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


def chart(
    rows: Sequence[tuple[str, float | None, float | None, float | None]],
    label: str,
    *,
    scale: float = 1.0,
    sign: int = 1,
) -> Chart | None:
    """The chart; None if cost and value are known for fewer than two rows.

    Args:
        rows: name, cost, value and standard error of each row.
        label: the name of the cost axis.
        scale: costs are divided by it.
        sign: -1 if lower values are better.
    """
    known = [
        (name, cost / scale, value, error)
        for name, cost, value, error in rows
        if cost is not None and value is not None
    ]
    if len(known) < 2:
        return None
    costs = [cost for _, cost, _, _ in known]
    log = min(costs) > 0 and max(costs) / min(costs) > _LOG_FROM
    ends = [v + k * 1.96 * (e or 0.0) for _, _, v, e in known for k in (-1, 1)]
    x = _Axis(min(costs), max(costs), _LEFT, _RIGHT, log=log)
    y = _Axis(min(ends), max(ends), _BOTTOM, _TOP)
    front = pareto([(cost, sign * value) for _, cost, value, _ in known])
    points = [
        Point(
            title=f"{name}: {value:.4f} at {cost:.3g}",
            label=(name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1]}…")
            if len(known) <= _MAX_LABELS or place in front
            else "",
            x=x.at(cost),
            y=y.at(value),
            low=y.at(value - 1.96 * error) if error else None,
            high=y.at(value + 1.96 * error) if error else None,
            on_front=place in front,
        )
        for place, (name, cost, value, error) in enumerate(known)
    ]
    _place_labels(points)
    unknown = [name for name, cost, value, _ in rows if cost is None or value is None]
    return Chart(
        label=label,
        points=points,
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        front=" ".join(f"{points[k].x},{points[k].y}" for k in front),
        missing=", ".join(unknown),
        log=log,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, value) on the Pareto front, by rising cost."""
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1])):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


class _Axis:
    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False):
        self.log, self.start, self.end = log, start, end
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        # Costs and accuracies are never negative, so the axis does not go below 0.
        self.low = max(0.0, low - room) if low >= 0 and not log else low - room
        self.high = high + room

    def at(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            inside = [v for v in values if self.low <= math.log10(v) <= self.high]
        else:
            step = _round_step((self.high - self.low) / 8)
            first = math.ceil(self.low / step)
            inside = [k * step for k in range(first, math.floor(self.high / step) + 1)]
        return [Tick(at=self.at(value), text=f"{value:.6g}") for value in inside]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * next(k for k in (1, 2, 5, 10) if k * power >= step * 0.999)


def _place_labels(points: Sequence[Point]) -> None:
    """Places each label beside its point, and moves it down until it covers no other label."""
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: (p.y, p.x)):
        width = 7.2 * len(point.label)
        is_right = point.x + 12 + width <= _WIDTH
        point.anchor = "start" if is_right else "end"
        point.label_x = point.x + (10 if is_right else -10)
        left = point.label_x if is_right else point.label_x - width
        height = point.y + 4
        while any(abs(height - y) < 15 and left < r and a < left + width for a, r, y in taken):
            height += 5
        point.label_y = height
        if point.label:
            taken.append((left, left + width, height))
