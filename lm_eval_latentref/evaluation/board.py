"""The cells and rows of a leaderboard, the comparison of its rows, and their ranks.

    ranking = Ranking(rows, {"mathqa": "acc,none"})
    pairs = ranking.pairs(seed=0)
    ranking.rank(pairs)              # sets each row's rank

Rows share a rank if they do not differ significantly from the best of them (Holm over all pairs).
Rows with different documents, task versions, shots or limits are not compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_latentref.evaluation.entries import Entry
from lm_eval_latentref.evaluation.results import Task
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    holm,
    paired_difference,
    paired_p,
    tiers,
    unpaired_p,
)
from lm_eval_latentref.evaluation.wording import plain

COSTS = {
    "thoughts_per_document": "thoughts",
    "forwards_per_document": "forwards",
    "tokens_read_per_document": "tokens read",
    "tokens_written_per_document": "written",
    "seconds_per_document": "s",
    "wall_seconds": "total s",
    "peak_memory_bytes": "peak GB",
}
"""The column of each cost in `Entry.cost`; all but the last two are per document."""
COSTS_IN_WORDS = {
    "thoughts_per_document": "thoughts per document",
    "forwards_per_document": "forwards of all models, per document",
    "tokens_read_per_document": "tokens read, per document",
    "tokens_written_per_document": "tokens written, per document",
    "seconds_per_document": "seconds per document, without loading",
    "wall_seconds": "total seconds, with loading",
    "peak_memory_bytes": "peak memory, GB",
}

SIGNIFICANCE = 0.05
FIELDS = ("version", "num_fewshot", "limit", "documents")
"""Two runs of a task are compared only if they agree in these."""
_NUM_RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A metric of one task in one row."""

    value: float
    stderr: float | None
    n: int | None
    """The number of documents."""


@dataclass(kw_only=True)
class Row:
    """A row of the board."""

    entry: Entry
    tasks: dict[str, dict[str, Cell]]
    mean: float | None
    """The mean over the tasks that the board is ranked by; None if the row lacks one of them."""
    mean_stderr: float | None
    normalised_mean: float | None
    """The mean of (value - chance) / (1 - chance), each at least 0; None if a chance is unknown."""
    rank: int | None = None
    """None for a row without samples, or one that cannot be compared with the ranked rows."""
    rank_by_stderr: int | None = None
    """For a row without samples: its rank by standard errors alone."""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def rank_text(self) -> str:
        """The rank, in brackets if it is by standard errors alone; empty if there is none."""
        if self.rank is not None:
            return str(self.rank)
        return "" if self.rank_by_stderr is None else f"({self.rank_by_stderr})"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows that were compared."""

    first: str
    second: str
    difference: float
    """The mean of the second minus that of the first."""
    interval: tuple[float, float] | None
    """95 %, by paired bootstrap over the documents; None if only standard errors are known."""
    p: float
    adjusted_p: float
    """Adjusted by Holm's method over all pairs of the board that were tested in the same way."""
    paired: bool
    num_documents: int | None
    flips: tuple[int, int] | None
    """How many documents only the first row has right, and how many only the second; None unless
    the metric is 0 or 1 for each document."""


@dataclass(kw_only=True)
class Board:
    """Rows from best to worst, and the comparisons between them."""

    rows: list[Row]
    pairs: list[Pair]
    ranked_by: dict[str, str]
    """For each task in the mean, its metric."""
    chance: dict[str, float | None]
    """For each task in the mean, the score of guessing; None if it is not known."""
    sign: int
    """-1 if lower values of the metric are better, else 1."""
    notes: list[str]
    """Remarks for readers: runs that were not compared, tasks left out of the mean, ..."""
    left_out: list[str]
    """Files that could not be read, each with the reason."""
    baseline: str | None = None
    to_baseline: dict[str, Interval] = field(default_factory=dict)
    """For each row, the difference of its mean from the baseline's."""

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Every task and metric; of a task's metrics, the one it is ranked by comes first."""
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
    """Each cost as tables show it; empty if it is not known."""
    cost = dict(row.entry.cost)
    forwards = cost.pop("forwards_per_document") or {}
    memory = cost.pop("peak_memory_bytes")
    texts = {name: "" if value is None else f"{value:.3g}" for name, value in cost.items()}
    texts["forwards_per_document"] = " + ".join(f"{value:.3g}" for value in forwards.values())
    texts["peak_memory_bytes"] = "" if memory is None else f"{memory / 1e9:.2f}"
    return {name: texts[name] for name in COSTS}


class Ranking:
    """Compares and ranks rows.

    Two rows are comparable if they agree in `FIELDS` for every task of the mean.

    Args:
        rows: sorted from best to worst.
        ranked_by: for each task in the mean, its metric.
        sign: -1 if lower values are better.
        allowed: names in `FIELDS` that may differ between compared rows.
        baseline: the name of the row that all ranked rows must be comparable with; None for the row
            that is comparable with most others.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        ranked_by: Mapping[str, str],
        *,
        sign: int = 1,
        allowed: Collection[str] = (),
        baseline: str | None = None,
    ) -> None:
        self.rows, self.ranked_by = rows, ranked_by
        self.sign, self.allowed = sign, allowed
        self.notes: list[str] = []
        self._unsampled = {row.name: _fields_without_samples(row, ranked_by) for row in rows}
        self._sampled = [self._has_samples(row) for row in rows]
        self._comparable, self._reference = self._find_comparable(baseline)

    def pairs(self, *, seed: int = 0) -> list[Pair]:
        """All pairs of rows that did the same work; the test is paired if both have samples."""
        tested = []
        for a, b in itertools.combinations(range(len(self.rows)), 2):
            if self._comparable[a, b]:
                both = self._sampled[a] and self._sampled[b]
                test = self._paired if both else self._unpaired
                pair = test(self.rows[a], self.rows[b], seed)
                tested += [pair] if pair else []
        return [
            dataclasses.replace(pair, adjusted_p=adjusted)
            for paired in (True, False)
            if (kind := [pair for pair in tested if pair.paired is paired])
            for pair, adjusted in zip(kind, holm([pair.p for pair in kind]), strict=True)
        ]

    def rank(self, pairs: Sequence[Pair]) -> None:
        """Sets `rank` of rows with samples, and `rank_by_stderr` of the others."""
        if self._reference is None:
            return
        ranked = [k for k in range(len(self.rows)) if self._comparable[self._reference, k]]
        sampled = [k for k in ranked if self._sampled[k]]
        worse = {(p.first, p.second) for p in pairs if p.paired and self._is_worse(p)}
        is_worse = [
            [(self.rows[a].name, self.rows[b].name) in worse for b in sampled] for a in sampled
        ]
        for k, rank in zip(sampled, tiers(is_worse), strict=True):
            self.rows[k].rank = rank
        if len(sampled) < len(ranked):
            self._rank_by_stderr(ranked)

    def _rank_by_stderr(self, ranked: Sequence[int]) -> None:
        unknown = [k for k in ranked if not self._sampled[k] and self.rows[k].mean_stderr is None]
        if unknown:
            self.notes.append(
                "no rank, because there are neither samples nor a standard error: "
                + ", ".join(self.rows[k].name for k in unknown)
            )
        ranked = [k for k in ranked if self.rows[k].mean_stderr is not None]
        if all(self._sampled[k] for k in ranked):
            return
        rows = [self.rows[k] for k in ranked]
        names = [row.name for row in rows]
        pairs = [self._unpaired(*two, 0) for two in itertools.combinations(rows, 2)]
        adjusted = holm([pair.p for pair in pairs if pair])
        worse = {
            (pair.first, pair.second)
            for pair, p in zip(filter(None, pairs), adjusted, strict=True)
            if self._is_worse(dataclasses.replace(pair, adjusted_p=p))
        }
        ranks = tiers([[(a, b) in worse for b in names] for a in names])
        for k, row, rank in zip(ranked, rows, ranks, strict=True):
            row.rank_by_stderr = None if self._sampled[k] else rank
        self.notes.append(
            "ranks in brackets are by standard errors alone, which detect less: these rows have no "
            "samples, or their metric has no value for a single document"
        )

    def _is_worse(self, pair: Pair) -> bool:
        return pair.adjusted_p < SIGNIFICANCE and self.sign * pair.difference < 0

    def _find_comparable(self, baseline: str | None) -> tuple[NDArray[np.bool_], int | None]:
        """Whether two rows are comparable (K, K), and the row that ranked rows must be like."""
        has_mean = np.array([row.mean is not None for row in self.rows])
        same = np.outer(has_mean, has_mean)
        for a, b in itertools.combinations(np.flatnonzero(has_mean).tolist(), 2):
            same[a, b] = same[b, a] = self._difference(self.rows[a], self.rows[b]) is None
        if not has_mean.any():
            return same, None
        named = [k for k, row in enumerate(self.rows) if row.name == baseline and has_mean[k]]
        reference = named[0] if named else int(same.sum(axis=0).argmax())
        for k in np.flatnonzero(has_mean & ~same[reference]).tolist():
            self._note_difference(self.rows[reference], self.rows[k])
        return same, reference

    def _difference(self, first: Row, second: Row) -> tuple[str, str] | None:
        """The first task and field in which two rows differ; None if they are comparable."""
        ours, theirs = self._unsampled[first.name], self._unsampled[second.name]
        if ours is not None and ours == theirs:
            return None
        for task in self.ranked_by:
            for a, b in itertools.product(first.entry.tasks[task], second.entry.tasks[task]):
                for name in FIELDS:
                    if self._differs(a, b, name):
                        return task, name
        return None

    def _differs(self, first: Task, second: Task, field: str) -> bool:
        if field == "documents":
            return not self._same_documents(first, second)
        if field in self.allowed:
            return False
        ours, theirs = _field_value(first, field), _field_value(second, field)
        return ours is not None and theirs is not None and ours != theirs

    def _same_documents(self, first: Task, second: Task) -> bool:
        """Whether two runs of a task answered the same documents; true if samples are missing."""
        if not first.columns or not second.columns:
            return True
        a, b = (next(iter(task.columns.values())) for task in (first, second))
        if "documents" in self.allowed:  # one common document is enough
            return bool(np.intersect1d(a.doc_ids, b.doc_ids).size)
        same_ids = "limit" in self.allowed or np.array_equal(a.doc_ids, b.doc_ids)
        return same_ids and a.same_documents(b)

    def _note_difference(self, first: Row, second: Row) -> None:
        task, field = self._difference(first, second) or ("", "")
        values = [_field_value(row.entry.tasks[task][0], field) for row in (first, second)]
        values = [f"{v:.10g}" if isinstance(v, float) else plain(v) for v in values]
        shown = "" if field == "documents" else f" ({values[0]} and {values[1]})"
        advice = f"; --allow_different {field} compares them anyway"
        self.notes.append(
            f"{first.name} and {second.name} are not compared: {field} of {plain(task)} "
            f"differs{shown}{'' if field in self.allowed else advice}"
        )

    def _has_samples(self, row: Row) -> bool:
        """Whether every metric of the mean has a number for each document."""
        return all(
            task in row.entry.tasks and all(t.paired(metric) for t in row.entry.tasks[task])
            for task, metric in self.ranked_by.items()
        )

    def _paired(self, first: Row, second: Row, seed: int) -> Pair:
        values = [self._aligned(task, first, second) for task in self.ranked_by]
        firsts, seconds = zip(*values, strict=True)
        interval = paired_difference(firsts, seconds, seed=seed, num_resamples=_NUM_RESAMPLES)
        p = paired_p(firsts, seconds)
        return Pair(
            first=first.name,
            second=second.name,
            difference=interval.mean,
            interval=(interval.low, interval.high),
            p=p,
            adjusted_p=p,
            paired=True,
            num_documents=sum(v.shape[-1] for v in firsts),
            flips=_flips(firsts, seconds),
        )

    def _unpaired(self, first: Row, second: Row, seed: int) -> Pair | None:
        errors = first.mean_stderr, second.mean_stderr
        if errors[0] is None or errors[1] is None:
            return None
        difference = (second.mean or 0.0) - (first.mean or 0.0)
        p = unpaired_p(difference, errors[0], errors[1])
        return Pair(
            first=first.name,
            second=second.name,
            difference=difference,
            interval=None,
            p=p,
            adjusted_p=p,
            paired=False,
            num_documents=None,
            flips=None,
        )

    def _aligned(self, task: str, first: Row, second: Row) -> list[NDArray[np.float64]]:
        """The values (N,), or (seeds, N), of each row on the documents that both have."""
        metric, _, filter_name = self.ranked_by[task].partition(",")
        sides = [[t.columns[filter_name] for t in r.entry.tasks[task]] for r in (first, second)]
        columns = [*sides[0], *sides[1]]
        ids_N = columns[0].doc_ids
        if all(np.array_equal(ids_N, column.doc_ids) for column in columns):
            values = [[column.values[metric] for column in side] for side in sides]
        else:
            for column in columns:
                ids_N = np.intersect1d(ids_N, column.doc_ids)
            values = [
                [c.values[metric][np.searchsorted(c.doc_ids, ids_N)] for c in side]
                for side in sides
            ]
        return [v[0] if len(v) == 1 else np.stack(v) for v in values]


def _fields_without_samples(row: Row, ranked_by: Mapping[str, str]) -> list[list[Any]] | None:
    """The values of `FIELDS` for each task in the mean; None for a row with samples."""
    tasks = [t for task in ranked_by for t in row.entry.tasks.get(task, ())]
    if any(task.columns for task in tasks):
        return None
    return [[_field_value(task, field) for field in FIELDS] for task in tasks]


def _field_value(task: Task, field: str) -> Any:
    """The value of one of `FIELDS`; None if it is not recorded."""
    value = task.num_documents if field == "limit" else getattr(task, field, None)
    return float(value) if isinstance(value, int | float) else value


def _flips(firsts: Sequence[Any], seconds: Sequence[Any]) -> tuple[int, int] | None:
    """The two counts of `Pair.flips`; None if some value is neither 0 nor 1."""
    if any(v.ndim > 1 or not np.isin(v, (0.0, 1.0)).all() for v in (*firsts, *seconds)):
        return None
    both = list(zip(firsts, seconds, strict=True))
    return sum(int((a > b).sum()) for a, b in both), sum(int((b > a).sum()) for a, b in both)
