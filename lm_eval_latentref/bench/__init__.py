"""Measurements of speed, memory and growth, each against what people would run otherwise.

    report = run_bench("choices", rounds=3, documents=32)
    report.table()      # for people
    report.line()       # one JSON line for machines

Real weights, both sides in one process in turn, fresh documents every round, the same for both
sides, and a check that both give the same answers. A bench is a module with
`run(**options) -> Report`; this one only knows their names.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from lm_eval_latentref.errors import LatentRefError

if TYPE_CHECKING:
    from lm_eval_latentref.bench.report import Report

BENCHES = {
    "choices": "lm_eval_latentref.bench.choices",
    "generation": "lm_eval_latentref.bench.generation",
    "refinement": "lm_eval_latentref.bench.refinement",
    "memory": "lm_eval_latentref.bench.memory",
    "growth": "lm_eval_latentref.bench.growth",
    "train": "lm_eval_latentref.bench.train",
    "device": "lm_eval_latentref.bench.device",
}
"""The module of each bench."""


def run_bench(name: str, *, output: str | None = None, **options: Any) -> Report:
    """Run bench `name` with those of its options that are given; None stands for its default.

    Args:
        output: file for the JSON line; a bench that draws puts its plot beside it.

    Raises LatentRefError for an option that this bench has not.
    """
    run = importlib.import_module(BENCHES[name]).run
    given = {option: value for option, value in options.items() if value is not None}
    allowed = list(inspect.signature(run).parameters)
    for option in given:
        if option not in allowed:
            raise LatentRefError(
                f"bench {name} has no --{option}; it takes "
                f"{', '.join(f'--{known}' for known in allowed)}"
            )
    if output is not None and "output" in allowed:
        given["output"] = output
    report: Report = run(**given)
    if output is not None:
        report.write(output)
    return report
