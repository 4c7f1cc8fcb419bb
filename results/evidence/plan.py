"""What is trained and compared, named before any result was seen.

    plan = PLANS["graph"]
    plan.recipe, [rung.name for rung in plan.rungs]

A rung is a backbone of less training than the finished one of the same run: training time decides
which, not accuracy. Whatever it turns out to be, every rung and every row is on the page.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)

MEMORY_RATES = (0.03, 0.05, 0.1, 0.3)
STEP_SIZES = (-0.3, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3, 1.0)
"""In units of d/2; 0 joins both."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A kept epoch of the Coconut phase."""

    name: str
    """As `keep_epochs` names it."""
    earlier: str
    """The epoch of the same phase that self-contrast moves away from."""
    pause: str
    """The epoch of the pause phase that was trained as long."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One task."""

    recipe: str
    """Of the package; each seed trains a CoT of its own."""
    task: str
    """Judged on all test problems; settings are chosen on those of its `_mc_dev`."""
    rungs: tuple[Rung, ...]
    """From less to more training; the finished Coconut of the same run is the control."""


PLANS = {
    "graph": Plan(
        recipe="graph-small",
        task="latentref_graph",
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-4", pause="pause-3-1"),
            Rung(name="coconut-3-4", earlier="coconut-3-1", pause="pause-3-4"),
            Rung(name="coconut-4-1", earlier="coconut-3-4", pause="pause-4-1"),
        ),
    ),
    "arith": Plan(
        recipe="arith-small",
        task="latentref_arith",
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-4", pause="pause-3-1"),
            Rung(name="coconut-3-2", earlier="coconut-3-1", pause="pause-3-2"),
        ),
    ),
    # Named when arith's rungs had turned out to be at the ceiling, and before anything of this one
    # was trained.
    "arith-brief": Plan(
        recipe="arith-brief",
        task="latentref_arith",
        rungs=(
            Rung(name="coconut-3-1", earlier="coconut-2-8", pause="pause-3-1"),
            Rung(name="coconut-3-2", earlier="coconut-3-1", pause="pause-3-2"),
            Rung(name="coconut-3-4", earlier="coconut-3-2", pause="pause-3-4"),
        ),
    ),
    # ProsQA's published problems in letters. Named before it was trained; one seed, for a run takes
    # about 100 minutes of one core.
    "prosqa-letters": Plan(
        recipe="prosqa-letters",
        task="latentref_prosqa_letters",
        rungs=(
            Rung(name="coconut-6-1", earlier="coconut-5-1", pause="pause-6-1"),
            Rung(name="coconut-6-2", earlier="coconut-6-1", pause="pause-6-2"),
        ),
    ),
}
