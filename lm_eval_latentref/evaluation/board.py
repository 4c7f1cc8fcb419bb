"""What a leaderboard is made of: cells, rows, pairs of rows that were compared.

    board.rows[0].rank, board.rows[0].tasks["mathqa"]["acc,none"].value
    board.pairs[0].difference

Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lm_eval_latentref.evaluation.rows import Entry
from lm_eval_latentref.evaluation.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A metric of one task in one row."""

    value: float
    stderr: float | None
    n: int | None
    """Documents."""


@dataclass(kw_only=True)
class Row:
    """A row of the board."""

    entry: Entry
    tasks: dict[str, dict[str, Cell]]
    mean: float | None
    """Over the tasks that the board is ranked by; None where the row lacks one of them."""
    mean_stderr: float | None
    normalised_mean: float | None
    """Likewise of (value - chance) / (1 - chance), at least 0; None where a chance is unknown."""
    rank: int | None = None
    """None without samples, and where the work is not the same as the other rows'."""
    rank_by_stderr: int | None = None
    """From standard errors alone, for a row without samples."""

    @property
    def name(self) -> str:
        return self.entry.name


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows that were compared."""

    first: str
    second: str
    difference: float
    """Of the mean, second minus first."""
    interval: tuple[float, float] | None
    """95 %, paired bootstrap of the documents; None where standard errors are all there is."""
    p: float
    adjusted_p: float
    """By Holm over all pairs of the board that were tested in the same way."""
    paired: bool
    num_documents: int | None
    flips: tuple[int, int] | None
    """Documents that only the first has right, only the second; None for other metrics."""


@dataclass(kw_only=True)
class Board:
    """Rows from best to worst, and what was compared."""

    rows: list[Row]
    pairs: list[Pair]
    ranked_by: dict[str, str]
    """The metric of each task that the mean is over."""
    chance: dict[str, float | None]
    notes: list[str]
    """What a reader has to know: runs that were not compared, tasks left out of the mean, ..."""
    left_out: list[str]
    """Files that could not be read, each with its reason."""
    baseline: str | None = None
    to_baseline: dict[str, Interval] = field(default_factory=dict)
    """By row, the difference of the mean to the baseline's."""

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Every task and metric, those it is ranked by first within their task."""
        every = dict.fromkeys(
            (task, metric)
            for row in self.rows
            for task, cells in row.tasks.items()
            for metric in cells
        )
        tasks = list(dict.fromkeys(task for task, _ in every))
        return sorted(every, key=lambda c: (tasks.index(c[0]), self.ranked_by.get(c[0]) != c[1]))
