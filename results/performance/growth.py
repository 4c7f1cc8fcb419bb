"""How time and memory grow with thoughts, search steps, rows, context, shared prefix and choices.

    python results/performance/growth.py -o results/performance/growth.json    # and growth.svg
    python results/performance/growth.py --axis context_tokens --rounds 1

One quantity at a time is varied around a common point; every measurement reads contexts of its
own, cut from ProsQA questions, thinks with both references and scores the choices. Straight lines
are fitted to the medians of seconds and of peak memory, weights included, and a power of the
quantity to the seconds at the larger half of its values. Beside the seconds are the columns that
all models read: each is multiplied by all weights, and attention reads all columns before it. Of
axes not named, the output keeps what it holds of this machine.
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
import numpy as np
import pages
import workload
from scipy.stats import linregress

from lm_eval_latentref.errors import LatentRefError


@dataclass(frozen=True)
class Point:
    """One amount of work."""

    thoughts: int = 6
    search_steps: int = 1
    batch_size: int = 1
    context_tokens: int = 128
    """Of each row's own, behind what all rows share."""
    shared_tokens: int = 0
    choices: int = 5


AXES: dict[str, tuple[int, ...]] = {
    "thoughts": (1, 2, 4, 6, 8, 12),
    "search_steps": (1, 2, 4, 8),
    "batch_size": (1, 2, 4, 8, 16),
    "context_tokens": (64, 128, 256, 512, 1024, 2048, 4096),
    "shared_tokens": (128, 256, 512, 1024, 2048),
    "choices": (1, 2, 5, 10, 20),
}
ROWS_THAT_SHARE = 4
CHOICE_TOKENS = 4
OPTIONS = [
    ("--axis", {"default": ",".join(AXES), "help": f"with commas between: {', '.join(AXES)}"}),
]


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, *OPTIONS, dtype="auto")
    names = args.axis.split(",")
    for name in names:
        if name not in AXES:
            raise LatentRefError(f"--axis {name}: give one or more of {', '.join(AXES)}")
    lm = workload.load_lm(args)
    hidden_size = lm.reasoner.backbone.hidden_size
    references = [workload.perturbed(lm.model, seed) for seed in (1, 2)]
    lm = workload.thinking(lm, workload.refined(hidden_size), *references)
    prompts = workload.prosqa(300, args.tiny)
    tokens = cycle(token for text in prompts for token in lm.tok_encode(text))
    around = Point(thoughts=2, context_tokens=8, choices=2) if args.tiny else Point()
    work(lm, around, tokens, args)
    axes = pages.kept(args, "axes")
    axes.update({name: measured(lm, name, around, tokens, args) for name in names})
    axes = {name: axes[name] for name in AXES if name in axes}
    centre = ", ".join(f"{name}={value}" for name, value in vars(around).items())
    report = pages.Report(
        name="growth",
        header=("", "y", "y = a + b x", "R2", "power", "y at each x (columns read)"),
        rows=[row for axis, fit in axes.items() for row in rows_of(axis, fit)],
        record={"around": vars(around), "axes": axes},
        remarks=[f"Around: {centre}; {ROWS_THAT_SHARE} rows share tokens. All in {args.dtype}."],
    )
    if args.output:
        draw(axes, Path(args.output).with_suffix(".svg"))
    return report.finish(args)


def points_of(axis: str, around: Point, tiny: bool) -> list[Point]:
    values = AXES[axis][:2] if tiny else AXES[axis]
    if axis == "shared_tokens":
        around = dataclasses.replace(around, batch_size=ROWS_THAT_SHARE)
    return [dataclasses.replace(around, **{axis: value}) for value in values]


def work(lm: Any, point: Point, tokens: Any, args: Any) -> tuple[float, float, dict[str, Any]]:
    """Seconds, peak memory in MiB, and what was counted, of one batch at `point` on fresh text."""
    reasoner = lm.reasoner
    reasoner.config = workload.refined(
        reasoner.backbone.hidden_size,
        latent_steps=point.thoughts,
        search_step_size=reasoner.backbone.hidden_size / 2 / point.search_steps,
        search_steps=point.search_steps,
    )
    shared, own = tuple(islice(tokens, point.shared_tokens)), point.context_tokens
    contexts = [(*shared, *islice(tokens, own)) for _ in range(point.batch_size)]
    choices = [
        [tuple(islice(tokens, CHOICE_TOKENS)) for _ in range(point.choices)] for _ in contexts
    ]
    took: list[float] = []
    clock = bench.clock_of(args)

    def score() -> None:
        for rows in reasoner.trunks.in_order(contexts):
            parts = ([each[row] for row in rows] for each in (contexts, choices))
            reasoner.score(*parts, max_rows=point.batch_size)

    bench.reset_peak()
    counted = bench.counts(lm, lambda: took.append(bench.timed(score, clock=clock)[0]))
    counts = {kind: counted[kind] for kind in ("forwards", "columns_read")}
    return took[0], bench.peak() / bench.MEBIBYTE, counts


def measured(lm: Any, axis: str, around: Point, tokens: Any, args: Any) -> dict[str, Any]:
    """Times, fits and counts of one axis as JSON values."""
    points = points_of(axis, around, args.tiny)
    seconds: list[list[float]] = [[] for _ in points]
    mebibytes: list[list[float]] = [[] for _ in points]
    counts: list[dict[str, Any]] = [{} for _ in points]
    for _ in range(args.rounds):
        for number, point in enumerate(points):
            took, peak, counts[number] = work(lm, point, tokens, args)
            seconds[number].append(took)
            mebibytes[number].append(peak)
    values = [vars(point)[axis] for point in points]
    return {
        "values": values,
        "seconds": seconds,
        "mebibytes": mebibytes,
        "line": line_through(values, seconds),
        "line_of_memory": line_through(values, mebibytes),
        "power": power_through(values[len(values) // 2 - 1 :], seconds[len(values) // 2 - 1 :]),
        "counts": counts,
    }


def line_through(values: Sequence[int], measured: Sequence[Sequence[float]]) -> dict[str, float]:
    """The straight line through all medians."""
    line = linregress(values, list(map(statistics.median, measured)))
    return {"a": line.intercept, "b": line.slope, "r2": line.rvalue**2}


def power_through(values: Sequence[int], measured: Sequence[Sequence[float]]) -> float:
    """The exponent of the power that fits the medians best."""
    return float(linregress(np.log(values), np.log(list(map(statistics.median, measured)))).slope)


def rows_of(axis: str, fit: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of an axis in the table, for seconds and for memory."""
    columns = [sum(each["columns_read"].values()) for each in fit["counts"]]
    at_each: dict[str, list[str]] = {"seconds": [], "mebibytes": []}
    for value, seconds, mebibytes, num_read in zip(
        fit["values"], fit["seconds"], fit["mebibytes"], columns, strict=True
    ):
        at_each["seconds"].append(f"{value}: {statistics.median(seconds):.3g} ({num_read})")
        at_each["mebibytes"].append(f"{value}: {statistics.median(mebibytes):.0f}")
    lines = {
        key: (f"{line['a']:.3g} + {line['b']:.3g} x", f"{line['r2']:.3f}")
        for key, line in (("seconds", fit["line"]), ("mebibytes", fit["line_of_memory"]))
    }
    return [
        (axis, "seconds", *lines["seconds"], f"{fit['power']:.2f}", ", ".join(at_each["seconds"])),
        ("", "MiB", *lines["mebibytes"], "", ", ".join(at_each["mebibytes"])),
    ]


def draw(axes: dict[str, Any], path: Path) -> None:
    """One panel an axis: medians with their range, and the line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(axes), 3), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, (axis, fit) in zip(panels, axes.items(), strict=True):
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
