"""How time grows with thoughts, search steps, batch size, context length and number of choices.

    python results/performance/growth.py -o results/performance/growth.json    # and growth.svg

One quantity at a time is varied around a common point; every measurement reads contexts of its
own, cut from ProsQA questions, thinks with both references and scores the choices. A straight line
is fitted to the medians, and the forwards and columns of each model are recorded beside the times.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import bench
from scipy.stats import linregress


@dataclass(frozen=True)
class Point:
    """One amount of work."""

    thoughts: int = 6
    search_steps: int = 1
    batch_size: int = 4
    context_tokens: int = 128
    choices: int = 5


AXES: dict[str, tuple[int, ...]] = {
    "thoughts": (1, 2, 4, 6, 8, 12),
    "search_steps": (1, 2, 4, 8),
    "batch_size": (1, 2, 4, 8, 16),
    "context_tokens": (32, 64, 128, 256, 512),
    "choices": (1, 2, 5, 10, 20),
}
CHOICE_TOKENS = 4


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, batch_size=1)
    lm = bench.load_lm(args)
    hidden_size = lm.reasoner.backbone.hidden_size
    references = [bench.perturbed(lm.model, seed) for seed in (1, 2)]
    lm = bench.thinking(lm, bench.refined(hidden_size), *references)
    prompts = bench.prosqa(300, args.tiny)
    tokens = cycle(token for text in prompts for token in lm.tok_encode(text))
    around = Point(2, 1, 2, 8, 2) if args.tiny else Point()
    axes = {axis: values[:2] for axis, values in AXES.items()} if args.tiny else AXES
    points = list(
        dict.fromkeys(dataclasses.replace(around, **{a: v}) for a in axes for v in axes[a])
    )
    work(lm, around, tokens)
    seconds: dict[Point, list[float]] = {point: [] for point in points}
    counts: dict[Point, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for point in points:
            took, counts[point] = work(lm, point, tokens)
            seconds[point].append(took)
    fits = {axis: measured(axis, values, around, seconds, counts) for axis, values in axes.items()}
    centre = ", ".join(f"{name}={value}" for name, value in vars(around).items())
    report = bench.Report(
        name="growth",
        header=("", "seconds = a + b x", "R2", "seconds at each x: median"),
        rows=[row(axis, fit) for axis, fit in fits.items()],
        record={"around": vars(around), "axes": fits},
        remarks=[f"Around: {centre}."],
    )
    if args.output:
        draw(fits, Path(args.output).with_suffix(".svg"))
    return report.finish(args)


def work(lm: Any, point: Point, tokens: Any) -> tuple[float, dict[str, Any]]:
    """Seconds, and what was counted, of one batch at `point` on fresh text."""
    reasoner = lm.reasoner
    reasoner.config = bench.refined(
        reasoner.backbone.hidden_size,
        latent_steps=point.thoughts,
        search_step_size=reasoner.backbone.hidden_size / 2 / point.search_steps,
        search_steps=point.search_steps,
    )
    contexts = [tuple(islice(tokens, point.context_tokens)) for _ in range(point.batch_size)]
    choices = [
        [tuple(islice(tokens, CHOICE_TOKENS)) for _ in range(point.choices)] for _ in contexts
    ]
    took: list[float] = []

    def score() -> None:
        seconds, _ = bench.timed(
            lambda: reasoner.score(contexts, choices, max_rows=point.batch_size)
        )
        took.append(seconds)

    counted = bench.counts(lm, score)
    return took[0], {kind: counted[kind] for kind in ("forwards", "columns_read")}


def measured(
    axis: str,
    values: Sequence[int],
    around: Point,
    seconds: dict[Point, list[float]],
    counts: dict[Point, dict[str, Any]],
) -> dict[str, Any]:
    """Times, line and counts of one axis as JSON values."""
    points = [dataclasses.replace(around, **{axis: value}) for value in values]
    line = linregress(values, [statistics.median(seconds[point]) for point in points])
    return {
        "values": list(values),
        "seconds": [seconds[point] for point in points],
        "line": {"a": line.intercept, "b": line.slope, "r2": line.rvalue**2},
        "counts": [counts[point] for point in points],
    }


def row(axis: str, fit: dict[str, Any]) -> tuple[str, ...]:
    line = fit["line"]
    pairs = zip(fit["values"], map(statistics.median, fit["seconds"]), strict=True)
    at_each = ", ".join(f"{value}: {median:.3g}" for value, median in pairs)
    return axis, f"{line['a']:.3g} + {line['b']:.3g} x", f"{line['r2']:.3f}", at_each


def draw(axes: dict[str, Any], path: Path) -> None:
    """One panel an axis: medians with their range, and the line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(axes), 3), layout="constrained")
    for panel, (axis, fit) in zip(figure.subplots(1, len(axes)), axes.items(), strict=True):
        medians = [statistics.median(times) for times in fit["seconds"]]
        below = [median - min(times) for median, times in zip(medians, fit["seconds"], strict=True)]
        above = [max(times) - median for median, times in zip(medians, fit["seconds"], strict=True)]
        panel.errorbar(fit["values"], medians, yerr=[below, above], fmt="o", capsize=2)
        a, b, ends = fit["line"]["a"], fit["line"]["b"], (min, max)
        x = [end(fit["values"]) for end in ends]
        panel.plot(x, [a + b * value for value in x], label=f"{a:.2g} + {b:.2g} x")
        panel.set(xlabel=axis.replace("_", " "), ylabel="seconds", ylim=(0, None))
        panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    bench.run(main)
