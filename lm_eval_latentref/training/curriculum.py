"""Which text a model is trained on at which stage: (problem, stage) to ids, labels and thoughts.

    curriculum = Curriculum(c_thought=1, max_latent_stage=3)
    row = curriculum.row(problem, stage=2)      # two steps gone, two thoughts in their place
    for batch in epoch_batches(rows, 64, rng):
        for rows in micro_batches(batch, 16):   # equal numbers of thoughts

The curriculum of Coconut (Hao et al., arXiv:2412.06769, section 3), with the names and meanings of
its published configuration: at stage k the first k reasoning steps are replaced by k * c_thought
thoughts; after `max_latent_stage` comes one more stage in which no step is left. Only what stands
behind the thoughts is labelled. Deliberately knows no tokenizer, no optimiser and no data source.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """An `Example` as token ids, in the text of the prompt protocol."""

    question: Tokens
    """The context: question and newline, with whatever special tokens precede every text."""
    steps: tuple[Tokens, ...]
    """Each with its newline."""
    answer: Tokens
    """"### ", the answer, EOS."""


@dataclass(frozen=True)
class Row:
    """What one forward pass reads of one problem."""

    context: Tokens
    num_thoughts: int
    """Thoughts between the context (and the start marker) and the end marker."""
    target: Tokens
    """All labelled ids: each is predicted from what stands before it, and nothing else is."""

    @property
    def num_columns(self) -> int:
        """Columns of context, thoughts and text; markers not counted."""
        return len(self.context) + self.num_thoughts + len(self.target)


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Coconut's schedule of stages; the fields are those of its configuration files."""

    c_thought: int = 1
    """Thoughts in place of each step."""

    max_latent_stage: int = 3
    """The last stage that removes one more step; the stage after it removes all that are left."""

    pad_latent_to_max: bool = True
    """Whether that stage thinks max_latent_stage * c_thought thoughts also about problems that have
    fewer steps. Evaluation does so always: the number of gold steps is not known then."""

    uniform_prob: float = 0.0
    """Probability, per problem and epoch, of a stage drawn uniformly from 0 to its number of
    steps in place of the scheduled one."""

    @property
    def final_stage(self) -> int:
        """The stage in which no reasoning step is left, however many a problem has."""
        return self.max_latent_stage + 1

    def row(self, problem: Problem, stage: int) -> Row:
        """What is trained at `stage` (0 or more)."""
        num_skipped = num_latent = stage
        if stage > self.max_latent_stage:
            num_skipped, num_latent = len(problem.steps), self.max_latent_stage
            if not self.pad_latent_to_max:
                num_latent = min(num_latent, len(problem.steps))
        remaining = itertools.chain.from_iterable(problem.steps[num_skipped:])
        return Row(problem.question, num_latent * self.c_thought, (*remaining, *problem.answer))

    def draw_stage(self, problem: Problem, stage: int, rng: random.Random) -> int:
        """`stage`, or with probability `uniform_prob` any that this problem has."""
        if rng.random() < self.uniform_prob:
            return rng.randint(0, len(problem.steps))
        return stage

    def latent_steps(self, stage: int) -> int:
        """Thoughts a model trained at `stage` thinks when it is evaluated."""
        return min(stage, self.max_latent_stage) * self.c_thought


def cot_row(problem: Problem) -> Row:
    """Plain chain of thought: every step, no thought."""
    return Row(
        problem.question, 0, (*itertools.chain.from_iterable(problem.steps), *problem.answer)
    )


def no_cot_row(problem: Problem) -> Row:
    """The answer alone."""
    return Row(problem.question, 0, problem.answer)


def epoch_batches(rows: Sequence[Row], batch_size: int, rng: random.Random) -> list[list[Row]]:
    """`rows` shuffled into global batches, each row once.

    Rows of a batch share their number of thoughts as far as whole batches can be made of them:
    every thought is one more forward pass for those that need it. What is left is mixed.
    """
    shuffled = rng.sample(list(rows), len(rows))
    alike: dict[int, list[Row]] = {}
    for row in shuffled:
        alike.setdefault(row.num_thoughts, []).append(row)
    batches, left = [], []
    for num_thoughts in sorted(alike):
        group = alike[num_thoughts]
        num_whole = len(group) - len(group) % batch_size
        batches += [group[at : at + batch_size] for at in range(0, num_whole, batch_size)]
        left += group[num_whole:]
    rng.shuffle(left)
    batches += [left[at : at + batch_size] for at in range(0, len(left), batch_size)]
    rng.shuffle(batches)
    return batches


def share(batch: Sequence[Row], rank: int, num_processes: int) -> list[Row]:
    """The rows of `batch` that process `rank` computes; together the shares are the batch.

    Dealt to and fro, so that no process has the longer row of every pair and the others wait.
    """
    ordered = _ordered(batch)[::-1]  # so that what is left for the last round is short
    rounds = [ordered[at : at + num_processes] for at in range(0, len(ordered), num_processes)]
    dealt = (rows if number % 2 == 0 else rows[::-1] for number, rows in enumerate(rounds))
    return [row for rows in dealt for row in rows[rank : rank + 1]]


def micro_batches(
    rows: Sequence[Row], max_rows: int, max_columns: int | None = None
) -> Iterator[list[Row]]:
    """`rows` in groups that have equal numbers of thoughts, shortest first.

    The loss of a batch is a sum over its rows, so the grouping changes nothing but rounding.

    Args:
        max_columns: of a group padded to its longest row; a row longer than that goes alone.
    """
    group: list[Row] = []
    for row in _ordered(rows):
        grown = [*group, row]
        fits = len(grown) <= max_rows and row.num_thoughts == grown[0].num_thoughts
        if max_columns is not None:
            fits = fits and len(grown) * _padded_columns(grown) <= max_columns
        if group and not fits:
            yield group
            grown = [row]
        group = grown
    if group:
        yield group


def _padded_columns(rows: Sequence[Row]) -> int:
    contexts, targets = (len(row.context) for row in rows), (len(row.target) for row in rows)
    return max(contexts) + rows[0].num_thoughts + max(targets)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    # Neighbours of about equal length waste little on padding; sorting is stable, so the order is
    # a function of the batch alone.
    return sorted(rows, key=lambda row: (row.num_thoughts, len(row.context), len(row.target)))
