"""The rows, tasks and options of a study, checked before anything runs.

    TaskNames("latentref_mathqa").dev           # "latentref_mathqa_mc_dev"
    Options(limit=100).loading                  # {}

`study` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.errors import LatentRefError

COCONUT = "Coconut"
BASELINES = {"No-CoT": "no_cot", "CoT": "strong", "pause tokens": "pause"}
"""The rows of other models in the trained folder, each with its subfolder."""
REFINED = {COCONUT: "plain", "+ residual": "residual", "+ search": "search", "both": "both"}
"""The rows of the set itself, each with the row of the sweep that its settings come from."""
WRITES_STEPS = ("CoT",)
"""Rows that write steps before their answer, so candidates cannot be scored right away."""
WITHOUT_STEPS = ", without its steps"
"""Added to the name of such a row on a task that is itself a choice among candidates."""

MEMORY_RATES = (0.05, 0.1, 0.3)
STEP_SIZES = (-0.1, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class TaskNames:
    """A task on a test split, and its companions."""

    name: str
    """The task that the rows are judged by."""

    @property
    def scored(self) -> str | None:
        """Its companion with candidates, which gives margins; None if there is none."""
        companion = f"{self.name}_mc"
        return companion if (tasks_path() / f"{companion}.yaml").is_file() else None

    @property
    def dev(self) -> str:
        """The task that settings are chosen on."""
        return f"{self.scored or self.name}_dev"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a study, for all sets and tasks."""

    latent_steps: int | None = None
    """The number of thoughts of the Coconut rows; the default is that of latentref.json."""
    memory_rates: Sequence[float] = MEMORY_RATES
    step_sizes: Sequence[float] = STEP_SIZES
    """The sweep's grid; step sizes are in units of d/2."""
    batch_size: int = 100
    device: str | None = None
    """None for the GPU if there is one."""
    dtype: str | None = None
    """The dtype of the models; None for that of the checkpoint."""
    limit: int | None = None
    """Only the first `limit` documents of each test."""
    dev_limit: int | None = None
    """Only the first `dev_limit` documents of each sweep; None for `limit`."""
    contrasts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Further rows of search alone, by name, each with its own strong and weak: a part of the set,
    "." for the set itself, or a checkpoint. A control has a reference known to think better."""
    margins: bool = True
    """Whether the candidates of generation tasks are scored as well, which doubles the time."""
    seed: int = 0
    """The seed of the bootstrap."""

    @property
    def loading(self) -> dict[str, Any]:
        """Model arguments of every row."""
        return {} if self.dtype is None else {"dtype": self.dtype}


def check_apart(what: str, names: Sequence[str]) -> None:
    """Raises if two sets or tasks have the same name, which is also that of their work folder."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LatentRefError(
            f"{what} {twice[0]} is given twice, and results are kept by that name; give each once, "
            "and study sets in folders of the same name one by one, each with its own --work"
        )


def check_dev_task(task: TaskNames) -> None:
    """Raises LatentRefError if there is no dev task to choose the settings of `task` on."""
    if not (tasks_path() / f"{task.dev}.yaml").is_file():
        raise LatentRefError(
            f"task={task.name}: there is no {task.dev} to choose settings on; give the test task "
            "of a benchmark, such as latentref_mathqa"
        )


def check_contrasts(options: Options) -> None:
    """Each has a row, and a folder in `work`, of its name; its sweep needs a step to choose."""
    taken = {*BASELINES, *BASELINES.values(), *REFINED, *REFINED.values(), "sweep"}
    for name in options.contrasts:
        if name in taken or not re.fullmatch(r"[\w-]+", name):
            raise LatentRefError(
                f"contrast {name!r}: give it a name of letters, digits, - and _ that no other row "
                "has, such as control"
            )
    if options.contrasts and not any(options.step_sizes):
        raise LatentRefError(
            "a contrast is a row of search, and all step sizes are 0; give --step_sizes others"
        )
