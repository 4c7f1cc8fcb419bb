"""What a leaderboard is made of: cells, rows, pairs of rows that were compared.

    board.rows[0].rank, board.rows[0].tasks["mathqa"]["acc,none"].value
    board.pairs[0].difference

Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lm_eval_latentref.evaluation.rows import Entry
from lm_eval_latentref.evaluation.statistics import Interval

COSTS = {
    "thoughts_per_document": "thoughts",
    "forwards_per_document": "forwards",
    "tokens_read_per_document": "tokens read",
    "tokens_written_per_document": "written",
    "seconds_per_document": "s",
    "wall_seconds": "s in all",
    "peak_memory_bytes": "peak GB",
}
"""Of `Entry.cost`, each with its column; all but the last two are for one document."""
COSTS_IN_WORDS = {
    "thoughts_per_document": "thoughts a document",
    "forwards_per_document": "forwards of all models, a document",
    "tokens_read_per_document": "tokens read, a document",
    "tokens_written_per_document": "tokens written, a document",
    "seconds_per_document": "seconds a document, without loading",
    "wall_seconds": "seconds in all, with loading",
    "peak_memory_bytes": "peak memory, GB",
}
LEGEND = (
    "rank: rows that share one do not differ significantly from its best row (paired on the same "
    "documents, Holm over all pairs, 5 %). mean: of the first metric of each task; over chance: of "
    "(value - chance) / (1 - chance). Costs are for one document, but seconds in all (loading "
    "included) and memory; forwards: of the backbone + strong + weak."
)


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

    @property
    def rank_text(self) -> str:
        """The rank, in brackets where it is by standard errors alone, or nothing."""
        if self.rank is not None:
            return str(self.rank)
        return "" if self.rank_by_stderr is None else f"({self.rank_by_stderr})"


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
    sign: int
    """-1 where the metric is better when it is lower, else 1."""
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


def made_with(row: Row) -> str:
    """Checkpoints, data, versions, date and machine of a row, in one line."""
    made = row.entry.made_with
    parts = [f"{role}: {name}" for role, name in row.entry.checkpoints.items()]
    parts += [f"data {name}: {value}" for name, value in made["data"].items()]
    parts += [f"{name} {version}" for name, version in made["versions"].items()]
    return "; ".join([*parts, *(made[k] for k in ("date", "device", "dtype") if made[k])])


def cost_texts(row: Row) -> dict[str, str]:
    """Each cost as a table shows it; empty where it is not known."""
    cost = dict(row.entry.cost)
    forwards = cost.pop("forwards_per_document") or {}
    memory = cost.pop("peak_memory_bytes")
    texts = {name: "" if value is None else f"{value:.3g}" for name, value in cost.items()}
    texts["forwards_per_document"] = " + ".join(f"{value:.3g}" for value in forwards.values())
    texts["peak_memory_bytes"] = "" if memory is None else f"{memory / 1e9:.2f}"
    return {name: texts[name] for name in COSTS}
