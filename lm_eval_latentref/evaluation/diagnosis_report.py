"""Diagnoses as a page for people (diagnosis.md) and as diagnosis.json.

    save([diagnose("out/hops-s0", ...)], "results/hops-small", command="latentref diagnose ...")

Every sentence that claims something is written from the intervals. Deliberately runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import saving
from lm_eval_latentref.evaluation.diagnosis import Diagnosis, Effect
from lm_eval_latentref.evaluation.pages import nats, table_head, table_row
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.statistics import Interval

CEILING = 0.99
"""Accuracy from which on there is nothing left for a refinement to show in accuracy."""


def save(found: Sequence[Diagnosis], folder: str | os.PathLike[str], *, command: str) -> None:
    """Writes diagnosis.md and diagnosis.json into `folder`."""
    path = Path(folder)
    content: dict[str, Any] = {
        "format": "latentref diagnosis 1",
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "sets": [dataclasses.asdict(one) for one in found],
    }
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "diagnosis.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        (path / "diagnosis.md").write_text(as_markdown(found, command=command), "utf-8")


def as_markdown(found: Sequence[Diagnosis], *, command: str) -> str:
    """What was found in words, then the numbers it rests on, for each set."""
    lines = [
        "# Why refinement helps, or does not",
        "",
        f"Written by `{command}`. Margins are log-likelihoods of the gold answer minus the best "
        "other, in nats; [] is the 95 % paired bootstrap interval over problems. eta is in units "
        "of d/2. z_t: thought t; g_t, b_t: the strong and the weak reference's state having read "
        "z_1..z_t.",
        "",
    ]
    for one in found:
        lines += [f"## {one.folder}, T={one.latent_steps}", ""]
        lines += [f"- {line}" for line in findings(one)]
        lines += ["", *_geometry(one), "", *_effects(one), ""]
    return "\n".join(lines)


def findings(one: Diagnosis) -> list[str]:
    """What the numbers say, one sentence each."""
    geometry = one.geometry
    norm, gap = (sum(values) / len(values) for values in (geometry.thought_norm, geometry.gap))
    ahead = geometry.ahead
    nearer = (
        "nearer to the next thought than to" if ahead.high < 0 else "no nearer to the next than"
    )
    room = "at the ceiling" if one.accuracy >= CEILING else "there is room"
    return [
        f"Accuracy without refinement on {one.num_problems} problems of `{one.task}`: "
        f"{100 * one.accuracy:.1f} % ({room}), mean margin {one.margin:+.3f}.",
        f"Thoughts have a mean norm of {norm:.2f}, input embeddings {geometry.embedding_norm:.2f}; "
        f"strong and weak are {gap:.2f} apart, {100 * gap / norm:.0f} % of a thought: that is what "
        "eta = 1 moves.",
        f"The strong reference's state is {nearer} the one it has read "
        f"(|g_t - z_(t+1)| - |g_t - z_t|: {nats(ahead)}).",
        f"Sign, +eta against -eta: {_signs(one, 'detached')}; with the gradient through the "
        f"references: {_signs(one, 'through')}.",
        *(f"{name}: {_told(one, what, _eta)}." for what, name in _GRADIENTS.items()),
        f"Other numbers of thoughts: {_told(one, 'T', lambda e: f'T={e.setting.latent_steps}')}.",
    ]


_GRADIENTS = {
    "detached": "Against no search, gradient detached",
    "through": "Against no search, gradient through the references",
}


def _eta(effect: Effect) -> str:
    return f"{effect.setting.step_size:+g}"


def _told(one: Diagnosis, what: str, name: Callable[[Effect], str]) -> str:
    effects = [effect for effect in one.effects if effect.what == what]
    return _sorted_out((name(effect), effect.margin) for effect in effects)


def _signs(one: Diagnosis, gradient: str) -> str:
    tests = [test for test in one.signs if test.gradient == gradient]
    return _sorted_out((f"{test.step_size:g}", test.margin) for test in tests)


def _sorted_out(named: Iterable[tuple[str, Interval]]) -> str:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for name, margin in named:
        kind = "better" if margin.low > 0 else "worse" if margin.high < 0 else "not told apart"
        groups[kind].append(name)
    said = [f"{kind} at {', '.join(names)}" for kind, names in groups.items() if names]
    return "; ".join(said) or "not tried"


def _geometry(one: Diagnosis) -> list[str]:
    geometry, number = one.geometry, one.latent_steps
    rows: dict[str, Sequence[float | None]] = {
        "|z_t|": geometry.thought_norm,
        "|z_t - z_(t-1)|": (None, *geometry.to_previous),
        "|g_t - b_t|": geometry.gap,
        "|g_t - z_t|": geometry.strong_to_own,
        "|g_t - z_(t+1)|": (*geometry.strong_to_next, None),
    }
    lines = table_head(["t", *(str(step) for step in range(1, number + 1))])
    for name, values in rows.items():
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append(table_row([name.replace("|", chr(92) + "|"), *cells]))
    return lines


def _effects(one: Diagnosis) -> list[str]:
    lines = table_head(["what", "setting", "accuracy %", "p", "margin against plain"])
    for effect in one.effects:
        lines.append(
            f"| {effect.what} | {effect.setting.label} | {100 * effect.accuracy:.1f} | "
            f"{effect.accuracy_test.p_value:.3g} | {nats(effect.margin)} |"
        )
    return lines
