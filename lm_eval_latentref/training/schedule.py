"""The schedule of a training run: stages, rows, learning rate, and the epochs for references.

for stage in stages(recipe, "coconut"):
    rows = stage_rows(recipe, "coconut", stage, problems, rng)
weak, strong = choose([Epoch(1, 40, 500), Epoch(2, 350, 500)], chance=0.05)
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scipy.stats import binomtest

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import Example
from lm_eval_latentref.training.curriculum import Problem, Row, cot_row, no_cot_row
from lm_eval_latentref.training.recipe import Recipe

LATENT_KINDS = {"pause": "pause", "coconut": "continuous"}
"""The kind of thoughts of each phase that has thoughts."""

LEAST_RATE = 0.05
"""The learning rate at the end of `decay`, as a fraction of the peak."""


@dataclass(frozen=True)
class Stage:
    """A part of a phase in which all rows have the same form."""

    number: int | None
    """The stage of the curriculum; None for phases without a curriculum."""
    num_epochs: int


@dataclass
class Progress:
    """The progress of a run. A run is resumed from this and from the saved tensors."""

    phase: int = 0
    """Index among the recipe's phases."""
    stage: int = 0
    """Index among the stages of the phase."""
    epoch: int = 0
    """Finished epochs of the stage."""
    step: int = 0
    """Finished steps of the epoch."""
    num_epochs: int = 0
    """Finished epochs of the run."""
    num_steps: int = 0
    """Finished steps of the run."""
    num_updates: int = 0
    """Steps of the current optimiser, which determine the warm-up."""
    loss: float = 0.0
    """Sum over the labelled tokens of the epoch so far. The next four are also reset after each
    epoch."""
    num_labelled: int = 0
    num_columns: int = 0
    num_rows: int = 0
    seconds: float = 0.0
    running_loss: float | None = None
    """Exponential moving average of the stage's loss per labelled token."""
    metrics_bytes: int = 0
    """Size of the metrics file."""
    validated: list[list[int]] = field(default_factory=list)
    """For each finished epoch of CoT: its number, the right answers and the problems."""

    def end_epoch(self) -> None:
        self.epoch, self.num_epochs, self.step = self.epoch + 1, self.num_epochs + 1, 0
        self.loss, self.num_labelled, self.num_columns, self.num_rows = 0.0, 0, 0, 0
        self.seconds = 0.0

    def end_stage(self) -> None:
        self.stage, self.epoch, self.running_loss = self.stage + 1, 0, None

    def end_phase(self) -> None:
        self.phase, self.stage = self.phase + 1, 0


def stages(recipe: Recipe, phase: str) -> list[Stage]:
    """The stages of `phase`, in order."""
    if phase not in LATENT_KINDS:
        if phase == "no_cot":
            return [Stage(None, recipe.no_cot_epochs)]
        return [Stage(None, recipe.cot_epochs)]
    result = []
    for number in range(recipe.first_stage, recipe.final_stage + 1):
        num_epochs = recipe.epochs_per_stage
        if number == recipe.final_stage and recipe.last_stage_epochs is not None:
            num_epochs = recipe.last_stage_epochs
        result.append(Stage(number, num_epochs))
    return result


def epoch_name(phase: str, stage: Stage, epoch: int) -> str:
    """The name of an epoch in `keep_epochs`; epochs are counted from 1 within their stage."""
    return f"{phase}-{epoch}" if stage.number is None else f"{phase}-{stage.number}-{epoch}"


def check_kept(recipe: Recipe) -> None:
    """Raises LatentRefError if `keep_epochs` names an epoch that the recipe does not train."""
    trained = [
        epoch_name(phase, stage, epoch)
        for phase in recipe.phases
        for stage in stages(recipe, phase)
        for epoch in range(1, stage.num_epochs + 1)
    ]
    if unknown := [name for name in recipe.keep_epochs if name not in trained]:
        raise LatentRefError(
            f"keep_epochs={unknown[0]}: this recipe does not train that epoch; the first is "
            f"{trained[0]}, the last {trained[-1]}"
        )


def writes_steps(recipe: Recipe, phase: str, stage: Stage, examples: Iterable[Example]) -> bool:
    """Whether a model trained at `stage` writes steps before its answer to any of `examples`."""
    if stage.number is None:
        return phase == "cot" and any(example.steps for example in examples)
    if stage.number > recipe.max_latent_stage:
        return False
    return any(len(example.steps) > stage.number for example in examples)


def stage_rows(
    recipe: Recipe, phase: str, stage: Stage, problems: Sequence[Problem], rng: random.Random
) -> list[Row]:
    """The rows of one epoch of `stage`, one for each problem."""
    if stage.number is None:
        make_row = cot_row if phase == "cot" else no_cot_row
        return [make_row(problem) for problem in problems]
    curriculum = recipe.curriculum
    drawn = [curriculum.draw_stage(problem, stage.number, rng) for problem in problems]
    return [
        curriculum.row(problem, number) for problem, number in zip(problems, drawn, strict=True)
    ]


def latent_steps(recipe: Recipe, stage: Stage) -> int:
    """The number of thoughts of a model trained at `stage` when it is evaluated."""
    return 0 if stage.number is None else recipe.curriculum.latent_steps(stage.number)


def learning_rate(
    recipe: Recipe, phase: str, stage: Stage, progress: Progress, *, steps_per_epoch: int
) -> float:
    """The learning rate of the next step, with warm-up and with decay at the end of the stage."""
    peak = recipe.learning_rate
    if phase in LATENT_KINDS and recipe.latent_learning_rate is not None:
        peak = recipe.latent_learning_rate
    warmed = (progress.num_updates + 1) / (recipe.warmup_steps + 1)
    done = (progress.epoch + progress.step / steps_per_epoch) / stage.num_epochs
    left = 1.0
    if recipe.decay > 0:
        left = max(0.0, 1.0 - done) / recipe.decay * (1 - LEAST_RATE) + LEAST_RATE
    return peak * min(1.0, warmed, left)


def epochs_left(recipe: Recipe, progress: Progress) -> int:
    """The number of epochs that remain, at least 1."""
    left = -progress.epoch
    for index, phase in enumerate(recipe.phases[progress.phase :]):
        planned = stages(recipe, phase)[progress.stage if index == 0 else 0 :]
        left += sum(stage.num_epochs for stage in planned)
    return max(left, 1)


class Epoch(NamedTuple):
    """The validation result after an epoch (counted from 1)."""

    number: int
    num_correct: int
    num_problems: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_problems


def lower_bound(num_correct: int, num_problems: int) -> float:
    """The lower bound of Wilson's 95 % interval of a proportion."""
    test = binomtest(num_correct, num_problems)
    return float(test.proportion_ci(confidence_level=0.95, method="wilson").low)


def choose(
    epochs: Sequence[Epoch],
    *,
    chance: float,
    strong_epoch: int | None = None,
    weak_epoch: int | None = None,
) -> tuple[int | None, int | None]:
    """The numbers of the weak and the strong epoch among `epochs`; None if no epoch qualifies.

    The strong epoch has the best accuracy; of equals, it is the last. The weak epoch is the worst
    of the others whose accuracy clearly beats `chance`; of equals, it is the first. `strong_epoch`
    and `weak_epoch` override this. An epoch that is not chosen now will not be chosen after more
    epochs either, so its weights need not be kept.
    """
    numbers = [epoch.number for epoch in epochs]
    best = max(epochs, key=lambda epoch: (epoch.accuracy, epoch.number), default=None)
    strong = best.number if best else None
    if strong_epoch is not None:
        strong = strong_epoch if strong_epoch in numbers else None
    beating = [
        epoch
        for epoch in epochs
        if epoch.number != strong and lower_bound(epoch.num_correct, epoch.num_problems) > chance
    ]
    worst = min(beating, key=lambda epoch: (epoch.accuracy, epoch.number), default=None)
    weak = worst.number if worst else None
    if weak_epoch is not None:
        weak = weak_epoch if weak_epoch in numbers else None
    return weak, strong
