"""The plan of trainings and comparisons, fixed before any result was seen.

    plan = PLANS["graph"]
    plan.recipe, [rung.name for rung in plan.rungs]

A rung is a backbone with less training than the finished backbone of the same run. Rungs are chosen
by training time, not by accuracy, and all of them are on the page.
"""

from __future__ import annotations

from dataclasses import dataclass

MEMORY_RATES = (0.03, 0.05, 0.1, 0.3)
STEP_SIZES = (-0.3, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3, 1.0)
"""In units of d/2. Memory rates and step sizes also include 0."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A kept epoch of the Coconut phase."""

    name: str
    """The name in `keep_epochs`."""
    earlier: str
    """The epoch of the same phase that self-contrast moves away from."""
    pause: str
    """The epoch of the pause phase with the same amount of training."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan for one task."""

    recipe: str
    """The packaged recipe; each seed trains a CoT of its own."""
    task: str
    """The task: rows are judged on its test problems, settings are chosen on those of its
    `_mc_dev`."""
    rungs: tuple[Rung, ...]
    """The rungs, from less to more training."""
    chance: float
    """The accuracy of guessing."""
    seeds: tuple[int, ...] = (0, 1, 2)
    is_published: bool = False
    """Whether the task is a published benchmark. The page shows it apart, and its rungs are
    compared only if the finished Coconut is significantly better than chance."""


PLANS = {
    "graph": Plan(
        recipe="graph-small",
        task="latentref_graph",
        chance=1 / 2,
        # Seed 3 was added, before its training, when that of seed 2 had stayed at chance; so did 3.
        seeds=(0, 1, 2, 3),
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-4", pause="pause-3-1"),
            Rung(name="coconut-3-4", earlier="coconut-3-1", pause="pause-3-4"),
            Rung(name="coconut-4-1", earlier="coconut-3-4", pause="pause-4-1"),
        ),
    ),
    # Added when two of the four seeds of graph had stayed at chance, after trials of the CoT phase
    # alone (seeds 2 and 3, validation problems) and before its own training began.
    "graph-spelled": Plan(
        recipe="graph-spelled",
        task="latentref_graph",
        chance=1 / 2,
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-3", pause="pause-3-1"),
            Rung(name="coconut-3-3", earlier="coconut-3-1", pause="pause-3-3"),
            Rung(name="coconut-4-1", earlier="coconut-3-3", pause="pause-4-1"),
        ),
    ),
    "arith": Plan(
        recipe="arith-small",
        task="latentref_arith",
        chance=1 / 11,
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-4", pause="pause-3-1"),
            Rung(name="coconut-3-2", earlier="coconut-3-1", pause="pause-3-2"),
        ),
    ),
    # Added when the rungs of arith turned out to be at the ceiling, before its own training began.
    "arith-brief": Plan(
        recipe="arith-brief",
        task="latentref_arith",
        chance=1 / 11,
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-8", pause="pause-3-1"),
            Rung(name="coconut-3-2", earlier="coconut-3-1", pause="pause-3-2"),
            Rung(name="coconut-3-4", earlier="coconut-3-2", pause="pause-3-4"),
        ),
    ),
    # ProsQA's published problems in letters. Fixed before its training; one seed, because a run
    # takes about 100 minutes on one core.
    "prosqa-letters": Plan(
        recipe="prosqa-letters",
        task="latentref_prosqa_letters",
        chance=1 / 2,
        seeds=(0,),
        is_published=True,
        rungs=(
            Rung(name="coconut-6-1", earlier="coconut-5-2", pause="pause-6-1"),
            Rung(name="coconut-6-3", earlier="coconut-6-1", pause="pause-6-3"),
        ),
    ),
}
