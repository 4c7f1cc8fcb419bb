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
from lm_eval_latentref.evaluation.settings import RECOMMENDED

COCONUT = "Coconut"
BASELINES = {"No-CoT": "no_cot", "CoT": "strong", "pause tokens": "pause"}
"""The rows of other models in the trained folder, with their subfolders."""
REFINED = {COCONUT: "plain", "+ residual": "residual", "+ search": "search", "both": "both"}
"""The rows of the set itself, with the rows of the sweep that choose their settings."""
WRITES_STEPS = ("CoT",)
"""Rows that write steps before their answer; their candidates are not scored for margins. Other
rows do so if latentref.json says it (`writes_steps`)."""
WITHOUT_STEPS = ", without its steps"
"""Added to the name of a row that writes steps if the task itself scores candidates."""

MEMORY_RATES = (0.05, 0.1, 0.3)
STEP_SIZES = (-0.1, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class TaskNames:
    """A task on a test split, and its companion tasks."""

    name: str
    """The task on which the rows are evaluated."""

    @property
    def scored(self) -> str | None:
        """The companion that scores candidates and gives margins; None if there is none."""
        companion = f"{self.name}_mc"
        return companion if (tasks_path() / f"{companion}.yaml").is_file() else None

    @property
    def dev(self) -> str:
        """The task on which settings are chosen."""
        return f"{self.scored or self.name}_dev"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a study, for all sets and tasks."""

    latent_steps: int | None = None
    """The number of thoughts of the Coconut rows; None for the number in latentref.json."""
    memory_rates: Sequence[float] = MEMORY_RATES
    """The memory rates of the sweep."""
    step_sizes: Sequence[float] | None = None
    """The step sizes of the sweep, in units of d/2; None for `STEP_SIZES` where there are
    references, else for no search."""
    batch_size: int = 100
    device: str | None = None
    """None for the GPU if there is one."""
    dtype: str | None = None
    """The dtype of the models; None for the dtype of the checkpoint."""
    limit: int | None = None
    """Only the first `limit` documents of each test."""
    dev_limit: int | None = None
    """Only the first `dev_limit` documents of each sweep; None for `limit`."""
    contrasts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Further rows of search alone, by name, with references of their own: (strong, weak). A
    reference is "." for the set itself, a path relative to the set or to the training that kept it,
    or a checkpoint. A positive control has a reference that is known to think better."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Further rows of other checkpoints, without refinement, by name. A checkpoint is named like a
    reference in `contrasts`."""
    recommended: bool = False
    """Whether there is a row with the setting that the sweep recommends, which may be none."""
    margins: bool = True
    """Whether the candidates of generation tasks are scored too, which doubles the time."""
    seed: int = 0
    """The seed of the bootstrap."""

    @property
    def refined(self) -> dict[str, str]:
        """The rows of the set itself, with their rows in `Choice.settings`."""
        return {**REFINED, RECOMMENDED: RECOMMENDED} if self.recommended else REFINED

    @property
    def loading(self) -> dict[str, Any]:
        """Model arguments that every row gets."""
        return {} if self.dtype is None else {"dtype": self.dtype}


def check_distinct(kind: str, names: Sequence[str]) -> None:
    """Raises LatentRefError if a set, task or row is given twice.

    Args:
        kind: "task", "folder" or "row", for the message.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LatentRefError(f"{kind} {twice[0]} is given twice; give it once")


def check_dev_task(task: TaskNames) -> None:
    """Raises LatentRefError if `task` has no dev task on which settings are chosen."""
    if not (tasks_path() / f"{task.dev}.yaml").is_file():
        raise LatentRefError(
            f"task={task.name}: settings would be chosen on {task.dev}, which does not exist; give "
            "the test task of a benchmark, such as latentref_mathqa"
        )


def check_rows(options: Options) -> None:
    """Raises LatentRefError if a further row has a name that is taken, or no step size to try."""
    taken = {*BASELINES, *BASELINES.values(), *REFINED, *REFINED.values(), RECOMMENDED, "sweep"}
    names = [*options.contrasts, *options.checkpoints]
    for name in names:
        if name in taken or names.count(name) > 1 or not re.fullmatch(r"[\w-]+", name):
            raise LatentRefError(
                f"row {name!r}: give it a name of letters, digits, - and _ that no other row has, "
                "such as control"
            )
    if options.contrasts and options.step_sizes is not None and not any(options.step_sizes):
        raise LatentRefError(
            "a contrast is a row of search, but all step sizes are 0; give others as --step_sizes"
        )
