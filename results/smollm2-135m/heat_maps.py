"""Draws the heat maps of these pages from their results.json: differences to plain Coconut.

    python results/smollm2-135m/heat_maps.py

The studies ran before `latentref study` drew differences. It now draws them itself, with a paired
standard error of the difference of accuracies too; these files have no answers by problem.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval_latentref.evaluation.plots import LINEAR_NATS, differences_map, figure_class

Json = dict[str, Any]


def draw(page: Path) -> None:
    """Draws `sweep-0.png` beside a page of one study with one set."""
    content = json.loads(page.read_text(encoding="utf-8"))
    sweep = content["sets"][0]["sweep"]
    settings = {
        (each["memory_rate"], each["step_size_in_half_d"]): each for each in sweep["settings"]
    }
    (plain,) = [each for each in settings.values() if each["label"] == sweep["best"]["plain"]]
    rates, sizes = (sorted(set(values)) for values in zip(*settings, strict=True))
    figure = figure_class()(
        figsize=(1.5 + 1.5 * len(sizes), 1.3 + 0.7 * len(rates)), layout="constrained"
    )
    axes = figure.add_subplot()
    differences_map(
        axes,
        [
            [settings[rate, size]["margin_against_plain"]["mean"] for size in sizes]
            for rate in rates
        ],
        texts=[[_text(settings[rate, size], plain) for size in sizes] for rate in rates],
        rows=[f"{rate:g}" for rate in rates],
        columns=[f"{size:g}*d/2" if size else "0" for size in sizes],
        linear=LINEAR_NATS,
        label="mean margin minus plain (nats)",
    )
    axes.set_xlabel("search_step_size")
    axes.set_ylabel("memory_rate")
    axes.set_title(f"T = {plain['latent_steps']}")
    figure.suptitle(f"{content['dev_task']}, {sweep['problems']} documents; [95 % interval]")
    figure.savefig(page.with_name("sweep-0.png"), dpi=120)


def _text(setting: Json, plain: Json) -> str:
    if setting is plain:
        return f"plain: {plain['margin']:+.3f}\n{100 * plain['accuracy']:.1f} %"
    margin = setting["margin_against_plain"]
    points = 100 * (setting["accuracy"] - plain["accuracy"])
    return (
        f"{margin['mean']:+.3f} [{margin['low']:+.3f}, {margin['high']:+.3f}]\n{points:+.1f} points"
    )


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.rglob("results.json")):
        if path.with_name("sweep-0.png").is_file():
            draw(path)
