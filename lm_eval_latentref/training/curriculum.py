"""The text that a model is trained on at each stage: ids, labels and number of thoughts.

    curriculum = Curriculum(c_thought=1, max_latent_stage=3)
    row = curriculum.row(problem, stage=2)      # two thoughts replace the first two steps
    for batch in epoch_batches(rows, 64, rng):
        for rows in micro_batches(batch, 16):   # rows with the same number of thoughts

This is the curriculum of Coconut (Hao et al., arXiv:2412.06769, section 3), with the names and
meanings of its published configuration: at stage k, k * c_thought thoughts replace the first k
reasoning steps; one more stage, in which no step is left, follows `max_latent_stage`. Only the text
after the thoughts is labelled.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """The token ids of an `Example`, written out by the prompt protocol."""

    question: Tokens
    """The context: question and newline, after the special tokens that begin every text."""
    steps: tuple[Tokens, ...]
    """The ids of each step and the newline that ends it."""
    answer: Tokens
    """The ids of "### " and the answer, then EOS."""


@dataclass(frozen=True)
class Row:
    """The columns of one problem that one forward pass reads."""

    context: Tokens
    num_thoughts: int
    """Thoughts between the context (and the start marker) and the end marker."""
    target: Tokens
    """All labelled ids; each is predicted from the columns before it."""

    @property
    def num_columns(self) -> int:
        """Columns of context, thoughts and text, without markers."""
        return len(self.context) + self.num_thoughts + len(self.target)


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Coconut's schedule of stages; the fields are those of its configuration files."""

    c_thought: int = 1
    """Thoughts in place of each step."""

    max_latent_stage: int = 3
    """The last stage that removes one more step; the stage after it removes all that are left."""

    pad_latent_to_max: bool = True
    """Whether the final stage has max_latent_stage * c_thought thoughts even for a problem with
    fewer steps. Evaluation always uses that number, as it does not know how many gold steps there
    are."""

    uniform_prob: float = 0.0
    """Probability, for each problem in each epoch, that a stage drawn uniformly from 0 to the
    problem's number of steps replaces the scheduled one."""

    @property
    def final_stage(self) -> int:
        """The stage in which no reasoning step is left, however many a problem has."""
        return self.max_latent_stage + 1

    def row(self, problem: Problem, stage: int) -> Row:
        """The row of `problem` at `stage` (0 or more)."""
        num_skipped = num_latent = stage
        if stage > self.max_latent_stage:
            num_skipped, num_latent = len(problem.steps), self.max_latent_stage
            if not self.pad_latent_to_max:
                num_latent = min(num_latent, len(problem.steps))
        remaining = itertools.chain.from_iterable(problem.steps[num_skipped:])
        return Row(problem.question, num_latent * self.c_thought, (*remaining, *problem.answer))

    def draw_stage(self, problem: Problem, stage: int, rng: random.Random) -> int:
        """`stage` or, with probability `uniform_prob`, a random stage that this problem has."""
        if rng.random() < self.uniform_prob:
            return rng.randint(0, len(problem.steps))
        return stage

    def latent_steps(self, stage: int) -> int:
        """The number of thoughts of a model trained at `stage` when it is evaluated."""
        return min(stage, self.max_latent_stage) * self.c_thought


def cot_row(problem: Problem) -> Row:
    """A row for plain chain of thought: every step, no thought."""
    return Row(
        problem.question, 0, (*itertools.chain.from_iterable(problem.steps), *problem.answer)
    )


def no_cot_row(problem: Problem) -> Row:
    """A row with the answer alone."""
    return Row(problem.question, 0, problem.answer)


def epoch_batches(rows: Sequence[Row], batch_size: int, rng: random.Random) -> list[list[Row]]:
    """`rows` shuffled into global batches, each row once.

    Rows with the same number of thoughts share batches, because each thought takes one forward pass
    for all rows of a batch that have it. Rows that do not fill such a batch are mixed at random.
    """
    shuffled = rng.sample(list(rows), len(rows))
    by_thoughts: dict[int, list[Row]] = {}
    for row in shuffled:
        by_thoughts.setdefault(row.num_thoughts, []).append(row)
    batches, rest = [], []
    for num_thoughts in sorted(by_thoughts):
        group = by_thoughts[num_thoughts]
        num_whole = len(group) - len(group) % batch_size
        batches += [group[at : at + batch_size] for at in range(0, num_whole, batch_size)]
        rest += group[num_whole:]
    rng.shuffle(rest)
    batches += [rest[at : at + batch_size] for at in range(0, len(rest), batch_size)]
    rng.shuffle(batches)
    return batches


def share(batch: Sequence[Row], rank: int, num_processes: int) -> list[Row]:
    """The rows of `batch` that process `rank` computes; each row belongs to exactly one process.

    Rows are assigned in snake order, so that all processes get about the same number of tokens.
    """
    ordered = _ordered(batch)[::-1]  # longest first, so that the last, partial round is short
    rounds = [ordered[at : at + num_processes] for at in range(0, len(ordered), num_processes)]
    in_snake_order = (rows[:: 1 if number % 2 == 0 else -1] for number, rows in enumerate(rounds))
    return [row for rows in in_snake_order for row in rows[rank : rank + 1]]


def micro_batches(
    rows: Sequence[Row], max_rows: int, max_columns: int | None = None
) -> Iterator[list[Row]]:
    """`rows` in groups whose rows have the same number of thoughts, shortest first.

    The loss of a batch is a sum over its rows, so the grouping only affects rounding.

    Args:
        max_rows: maximum number of rows in a group.
        max_columns: maximum number of columns in a group, padding included; a longer row forms a
            group by itself.
    """
    group: list[Row] = []
    for row in _ordered(rows):
        candidate = [*group, row]
        fits = len(candidate) <= max_rows and row.num_thoughts == candidate[0].num_thoughts
        if max_columns is not None:
            fits = fits and len(candidate) * _padded_columns(candidate) <= max_columns
        if group and not fits:
            yield group
            candidate = [row]
        group = candidate
    if group:
        yield group


def _padded_columns(rows: Sequence[Row]) -> int:
    contexts, targets = (len(row.context) for row in rows), (len(row.target) for row in rows)
    return max(contexts) + rows[0].num_thoughts + max(targets)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    # Neighbours of about equal length need little padding. Sorting is stable, so the order depends
    # on the batch alone.
    return sorted(rows, key=lambda row: (row.num_thoughts, len(row.context), len(row.target)))
