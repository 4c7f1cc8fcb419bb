"""How time grows with thoughts, search steps, batch size, context length and number of choices.

    latentref bench growth --rounds 3 -o results/performance/growth.json    # and growth.svg

One quantity at a time is varied around a common point; every measurement reads contexts of its
own, cut from ProsQA questions, thinks with both references and scores the choices. A straight line
is fitted to the medians, and the forwards and columns of each model stand beside the times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.bench.report import Report, Spread, timed_call
from lm_eval_latentref.bench.sides import facts, load_lm, perturbed, prosqa_prompts, thinking
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.plots import figure_class
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.reasoner import Reasoner


@dataclass(frozen=True)
class Point:
    """One amount of work."""

    thoughts: int = 6
    search_steps: int = 1
    batch_size: int = 4
    context_tokens: int = 128
    choices: int = 5


AXES = {
    "thoughts": (1, 2, 4, 6, 8, 12),
    "search_steps": (1, 2, 4, 8),
    "batch_size": (1, 2, 4, 8, 16),
    "context_tokens": (32, 64, 128, 256, 512),
    "choices": (1, 2, 5, 10, 20),
}
CHOICE_TOKENS = 4


def run(
    *,
    rounds: int = 3,
    dtype: str = "bfloat16",
    pretrained: str | None = None,
    output: str | None = None,
) -> Report:
    """Seconds at every point of every axis, their lines, and the counts that explain them."""
    if rounds < 1:
        raise LatentRefError(f"rounds={rounds}; give at least 1")
    lm = load_lm(pretrained=pretrained, dtype=dtype, batch_size=1)
    references = (perturbed(lm.model, 1), perturbed(lm.model, 2))
    reasoner = thinking(lm, _config(Point(), lm.reasoner.backbone.hidden_size), references).reasoner
    tokens = cycle(token for text in prosqa_prompts(300) for token in lm.tok_encode(text))
    points = list(dict.fromkeys(_at(axis, value) for axis in AXES for value in AXES[axis]))
    _work(reasoner, Point(), tokens)
    seconds: dict[Point, list[float]] = {point: [] for point in points}
    counts: dict[Point, dict[str, Any]] = {}
    for _ in range(rounds):
        for point in points:
            took, counts[point] = _work(reasoner, point, tokens)
            seconds[point].append(took)
    axes = {axis: _axis(axis, seconds, counts) for axis in AXES}
    report = Report(
        bench="growth",
        header=("", "seconds = a + b x", "R2", "seconds at each x: median"),
        rows=[_row(axis, found) for axis, found in axes.items()],
        remarks=[
            "Around: " + ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(Point()).items()) + "."
        ],
        record={
            "around": dataclasses.asdict(Point()),
            "axes": axes,
            "rounds": rounds,
            **facts(lm),
        },
    )
    if output is not None:
        draw(axes, str(Path(output).with_suffix(".svg")))
    return report


def fit(values: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """The least-squares line seconds = a + b x, and the share of variance it explains."""
    slope, intercept = np.polyfit(values, seconds, 1)
    residuals = np.asarray(seconds) - (intercept + slope * np.asarray(values))
    total = np.sum((np.asarray(seconds) - np.mean(seconds)) ** 2)
    explained = 1 - float(np.sum(residuals**2) / total) if total else 1.0
    return {"a": float(intercept), "b": float(slope), "r2": explained}


def draw(axes: dict[str, Any], path: str) -> None:
    """One panel an axis: medians with their range, and the line."""
    figure = figure_class()(figsize=(3 * len(axes), 3), layout="constrained")
    panels = figure.subplots(1, len(axes))
    for panel, (axis, found) in zip(panels, axes.items(), strict=True):
        medians = [one["median"] for one in found["seconds"]]
        below = [one["median"] - one["low"] for one in found["seconds"]]
        above = [one["high"] - one["median"] for one in found["seconds"]]
        panel.errorbar(found["values"], medians, yerr=[below, above], fmt="o", capsize=2)
        ends = np.asarray([min(found["values"]), max(found["values"])])
        line = found["line"]
        panel.plot(ends, line["a"] + line["b"] * ends, label=f"{line['a']:.2g} + {line['b']:.2g} x")
        panel.set(xlabel=axis.replace("_", " "), ylabel="seconds", ylim=(0, None))
        panel.legend(frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _at(axis: str, value: int) -> Point:
    return dataclasses.replace(Point(), **{axis: value})


def _config(point: Point, hidden_size: int) -> RefinementConfig:
    return RefinementConfig(
        latent_steps=point.thoughts,
        memory_rate=0.5,
        search_step_size=hidden_size / 2 / point.search_steps,
        search_steps=point.search_steps,
    )


def _work(reasoner: Reasoner, point: Point, tokens: Any) -> tuple[float, dict[str, Any]]:
    """Seconds, and what was counted, of one batch at `point` on fresh text."""
    reasoner.config = _config(point, reasoner.backbone.hidden_size)
    contexts = [tuple(islice(tokens, point.context_tokens)) for _ in range(point.batch_size)]
    choices = [
        [tuple(islice(tokens, CHOICE_TOKENS)) for _ in range(point.choices)] for _ in contexts
    ]
    before = reasoner.accounting.report()
    seconds, _ = timed_call(lambda: reasoner.score(contexts, choices, max_rows=point.batch_size))
    after = reasoner.accounting.report()
    counts = {
        kind: {name: after[kind][name] - before[kind][name] for name in after[kind]}
        for kind in ("forwards", "columns_read", "seconds")
    }
    phases = {name: round(value, 4) for name, value in counts.pop("seconds").items() if value}
    return seconds, {**counts, "phases": phases}


def _axis(
    axis: str, seconds: dict[Point, list[float]], counts: dict[Point, dict[str, Any]]
) -> dict[str, Any]:
    values = AXES[axis]
    spreads = [Spread.of(seconds[_at(axis, value)]) for value in values]
    return {
        "values": list(values),
        "seconds": [spread.rounded() for spread in spreads],
        "line": fit(values, [spread.median for spread in spreads]),
        "counts": [counts[_at(axis, value)] for value in values],
    }


def _row(axis: str, found: dict[str, Any]) -> tuple[str, ...]:
    line = found["line"]
    pairs = zip(found["values"], found["seconds"], strict=True)
    return (
        axis,
        f"{line['a']:.3g} + {line['b']:.3g} x",
        f"{line['r2']:.3f}",
        ", ".join(f"{value}: {one['median']:.3g}" for value, one in pairs),
    )
