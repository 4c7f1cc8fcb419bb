"""A leaderboard with one row for each run, ranked by paired tests on the same documents.

    board = leaderboard(["results/coconut", "plain=results/no_cot"], baseline="plain")
    board.rows[0].name, board.rows[0].rank, board.rows[0].mean

Rows are sorted by their mean over tasks, which is relative to chance if chance is known. `entries`
makes the rows, `board` compares and ranks them, `leaderboard_report` and `leaderboard_page` write
the board.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.board import FIELDS, Board, Cell, Pair, Ranking, Row
from lm_eval_latentref.evaluation.entries import Entry, entries_of, path_of
from lm_eval_latentref.evaluation.results import Results, Score, Task, result_files
from lm_eval_latentref.evaluation.samples import METRICS
from lm_eval_latentref.evaluation.statistics import Interval, standard_error
from lm_eval_latentref.evaluation.wording import plain


def leaderboard(
    paths: Iterable[str | Path],
    *,
    baseline: str | None = None,
    allow_different: Collection[str] = (),
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> Board:
    """The board of all runs in `paths`.

    Args:
        paths: files and folders. NAME=PATH makes one row called NAME; the same name again adds
            tasks or seeds to that row.
        baseline: the name of the row that all others are compared with.
        allow_different: names in `FIELDS` in which compared runs may differ.
        metrics: a task is ranked by the first of these that it has.
        seed: the seed of the bootstrap.

    Raises:
        LatentRefError: no run can be read, no row is called `baseline`, or there is no such field
            or metric.
    """
    if unknown := [name for name in allow_different if name not in FIELDS]:
        raise LatentRefError(
            f"--allow_different {unknown[0]}: it must be one of {', '.join(FIELDS)}"
        )
    paths, read, notes = list(paths), Results(), list[str]()
    entries = entries_of(paths, read, notes)
    left_out = [plain(problem) for problem in read.problems]
    if not entries:
        reasons = left_out or [f"{plain(path)}: no results of lm-eval" for path in paths]
        raise LatentRefError("; ".join(["no results can be read", *reasons]))
    if metrics != METRICS:
        _check_metrics(metrics, entries)
    return _Builder(entries, notes, left_out, allow_different, metrics, seed).board(baseline)


def state_of(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files that `leaderboard` would read; they show changes."""
    places = [path_of(path)[1] for path in paths]
    files = [file for place in places for file in result_files(Path(place).expanduser())]
    states = []
    for file in files:
        with contextlib.suppress(OSError):  # removed after the folder was listed
            stat = file.stat()
            states.append((str(file), stat.st_size, stat.st_mtime_ns))
    return states


class _Builder:
    def __init__(
        self,
        entries: list[Entry],
        notes: list[str],
        left_out: list[str],
        allowed: Collection[str],
        metrics: Sequence[str],
        seed: int,
    ) -> None:
        self.entries, self.notes, self.left_out = entries, notes, left_out
        self.allowed, self.seed = allowed, seed
        self.ranked_by = self._ranked_by(metrics)
        self.sign = self._sign()
        self.chance = {task: self._chance(task) for task in self.ranked_by}
        if allowed:
            self.notes.append(f"rows are compared even if they differ in: {', '.join(allowed)}")

    def board(self, baseline: str | None) -> Board:
        rows = sorted((self._row(entry) for entry in self.entries), key=self._order)
        names = [row.name for row in rows]
        if baseline is not None and baseline not in names:
            raise LatentRefError(
                f"--baseline {plain(baseline)}: there is no row of this name; it must be one of "
                + "; ".join(names)
            )
        ranking = Ranking(
            rows, self.ranked_by, sign=self.sign, allowed=self.allowed, baseline=baseline
        )
        pairs = ranking.pairs(seed=self.seed)
        ranking.rank(pairs)
        self.notes += ranking.notes
        self._note_machines(rows)
        board = Board(
            rows=rows,
            pairs=pairs,
            ranked_by=self.ranked_by,
            chance=self.chance,
            sign=self.sign,
            notes=self.notes,
            left_out=self.left_out,
            baseline=baseline,
        )
        for pair in pairs:
            _add_to_baseline(board, pair)
        return board

    # What the board is ranked by.

    def _ranked_by(self, metrics: Sequence[str]) -> dict[str, str]:
        """For each task in the mean, its metric; these are the tasks that most rows have."""
        names = dict.fromkeys(task for entry in self.entries for task in entry.tasks)
        preferred = {
            task: _preferred([e.tasks[task][0] for e in self.entries if task in e.tasks], metrics)
            for task in names
        }
        num_rows = {task: sum(task in e.tasks for e in self.entries) for task in names}
        most = max(num_rows.values(), default=0)
        common = [task for task in names if num_rows[task] == most]
        if len(common) < len(names):
            others = ", ".join(plain(task) for task in names if task not in common)
            self.notes.append(
                f"the mean is over {', '.join(map(plain, common))}, which "
                f"{'all' if most == len(self.entries) else 'most'} rows have; not over {others}"
            )
        shares = [task for task in common if self._is_share(task, preferred[task])]
        # A metric that has no value for a single document cannot be tested in pairs.
        shares = [task for task in shares if self._has_pairs(task, preferred[task])] or shares
        if shares and len(shares) < len(common):
            others = ", ".join(plain(task) for task in common if task not in shares)
            self.notes.append(f"not in the mean, because their metric is not an accuracy: {others}")
        return {task: preferred[task] for task in shares or common[:1]}

    def _has_pairs(self, task: str, metric: str) -> bool:
        """Whether some run's samples have the metric; true if there are no samples."""
        sampled = [t for e in self.entries for t in e.tasks.get(task, ()) if t.columns]
        return not sampled or any(t.paired(metric) for t in sampled)

    def _is_share(self, task: str, metric: str) -> bool:
        scores = [
            t.scores[metric]
            for e in self.entries
            for t in e.tasks.get(task, ())
            if metric in t.scores
        ]
        return all(0 <= s.value <= 1 and s.higher_is_better is not False for s in scores)

    def _sign(self) -> int:
        """-1 if the board is ranked by one metric and lower values of it are better, else 1."""
        (task, metric), *_ = [*self.ranked_by.items(), (None, None)]
        scores = [t.scores.get(metric) for e in self.entries for t in e.tasks.get(task, ())]
        return -1 if any(s and s.higher_is_better is False for s in scores) else 1

    def _chance(self, task: str) -> float | None:
        """The score of guessing on `task`, from any run that recorded it; None if none did."""
        known = [
            t.chance for e in self.entries for t in e.tasks.get(task, ()) if t.chance is not None
        ]
        is_accuracy = self.ranked_by[task].startswith(METRICS)
        return known[0] if known and is_accuracy and self.sign > 0 else None

    # Rows.

    def _row(self, entry: Entry) -> Row:
        cells = {task: _cells(runs) for task, runs in entry.tasks.items()}
        own = [cells.get(task, {}).get(metric) for task, metric in self.ranked_by.items()]
        used = [cell for cell in own if cell is not None]
        if not used or len(used) < len(own):
            missing = [
                f"{metric} of {plain(task)}"
                for (task, metric), cell in zip(self.ranked_by.items(), own, strict=True)
                if cell is None
            ]
            self.notes.append(f"{entry.name} has no {', '.join(missing)}: no mean, no rank")
            return Row(entry=entry, tasks=cells, mean=None, mean_stderr=None, normalised_mean=None)
        errors = [cell.stderr for cell in used if cell.stderr is not None]
        chances = list(self.chance.values())
        over_chance = [
            max(0.0, (cell.value - chance) / (1.0 - chance))
            for cell, chance in zip(used, chances, strict=True)
            if chance is not None and chance < 1.0
        ]
        return Row(
            entry=entry,
            tasks=cells,
            mean=sum(cell.value for cell in used) / len(used),
            mean_stderr=math.hypot(*errors) / len(used) if len(errors) == len(used) else None,
            normalised_mean=sum(over_chance) / len(used) if len(over_chance) == len(used) else None,
        )

    def _order(self, row: Row) -> tuple[bool, float, float, str]:
        if row.mean is None:
            return True, 0.0, 0.0, row.name
        first = row.mean if row.normalised_mean is None else row.normalised_mean
        return False, -self.sign * first, -self.sign * row.mean, row.name

    def _note_machines(self, rows: Sequence[Row]) -> None:
        for name in ("device", "dtype"):
            runs = [run for row in rows for run in row.entry.runs]
            values = {str(getattr(run, name)) for run in runs if getattr(run, name)}
            if len(values) > 1:
                self.notes.append(
                    f"rows differ in {name}: {', '.join(sorted(map(plain, values)))}; "
                    "rounding alone can change answers"
                )


def _check_metrics(metrics: Sequence[str], entries: Iterable[Entry]) -> None:
    """Raises LatentRefError for a metric that no task has, which would otherwise be ignored."""
    keys = {key for e in entries for tasks in e.tasks.values() for t in tasks for key in t.scores}
    names = sorted(keys | {key.partition(",")[0] for key in keys})
    if unknown := [metric for metric in metrics if metric not in names]:
        raise LatentRefError(
            f"--metric {unknown[0]}: no task has it; it must be one of {', '.join(names)}"
        )


def _preferred(tasks: Sequence[Task], metrics: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for task in tasks for key in task.scores))
    for metric in metrics:
        for key in keys:
            if metric in (key, key.partition(",")[0]):
                return key
    return keys[0]


def _cells(tasks: Sequence[Task]) -> dict[str, Cell]:
    """The scores of one task by metric, averaged over the runs (seeds) of a row."""
    cells = {}
    for metric in dict.fromkeys(key for task in tasks for key in task.scores):
        scores: list[Score] = [t.scores[metric] for t in tasks if metric in t.scores]
        values = [score.value for score in scores]
        stderr = _stderr_over_seeds(tasks, metric) if len(tasks) > 1 else scores[0].stderr
        cells[metric] = Cell(
            value=sum(values) / len(values), stderr=stderr, n=tasks[0].num_documents
        )
    return cells


def _stderr_over_seeds(tasks: Sequence[Task], metric: str) -> float | None:
    """Standard error over documents of the mean over seeds; None if the documents differ."""
    name, _, filter_name = metric.partition(",")
    if not all(task.paired(metric) for task in tasks):
        return None
    values = [task.columns[filter_name].values[name] for task in tasks]
    if len({len(v) for v in values}) > 1:
        return None
    return standard_error(np.mean(values, axis=0))


def _add_to_baseline(board: Board, pair: Pair) -> None:
    low, high = pair.interval or (math.nan, math.nan)
    if pair.first == board.baseline:
        board.to_baseline[pair.second] = Interval(pair.difference, low, high)
    elif pair.second == board.baseline:
        board.to_baseline[pair.first] = Interval(-pair.difference, -high, -low)
