"""A leaderboard as one HTML file, which needs no network.

    Path("board.html").write_text(as_html(board))

The table, the chart of accuracy against cost and the commands are plain HTML and SVG. A script
sorts and filters rows, and compares two chosen rows document by document. All text from data sets
and models is escaped.

Array suffix: N documents of a task.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.board import (
    COSTS,
    COSTS_IN_WORDS,
    Board,
    Row,
    cost_texts,
    made_with,
)
from lm_eval_latentref.evaluation.chart import Chart, chart
from lm_eval_latentref.evaluation.entries import SETTINGS
from lm_eval_latentref.evaluation.results import Task
from lm_eval_latentref.evaluation.samples import answer_text, clip, gold_text, read_at, request
from lm_eval_latentref.evaluation.templates import render
from lm_eval_latentref.evaluation.wording import figure, plain, short_name

MAX_TEXT_BYTES = 1_500_000
"""The maximum number of bytes of questions and answers; further documents are only counted."""
_MAX_QUESTION, _MAX_ANSWER = 600, 160
LEGEND = (
    "rank: rows with the same rank do not differ significantly from the best of them (paired on "
    "the same documents, Holm over all pairs, 5 %). mean: over the first metric of each task; over "
    "chance: the mean of (value - chance) / (1 - chance). Costs are per document, except total "
    "seconds (with loading) and memory; forwards: backbone + strong + weak."
)
_QUESTIONS = ("question", "query", "Problem", "problem", "prompt", "input", "ctx", "sentence")


def as_html(board: Board) -> str:
    """The page as text."""
    groups = [("metrics", "all metrics"), ("settings", "settings"), ("costs", "costs")]
    latent = any(row.entry.settings for row in board.rows)
    tasks = ", ".join(plain(f"{task} {metric}") for task, metric in board.ranked_by.items())
    data = json.dumps(_data(board), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return render(
        "leaderboard.html.j2",
        title="Leaderboard",
        summary=f"ranked by {tasks}",
        notes=board.notes,
        left_out=board.left_out,
        groups=groups if latent else [groups[0], groups[2]],
        shown=["settings", "costs"],
        columns=_columns(board),
        rows=_rows(board),
        legend=LEGEND,
        charts=_charts(board),
        data=_inert(data),
    )


def _inert(data: str) -> Any:
    """`data` escaped so that it cannot end the script element that holds it."""
    from markupsafe import Markup

    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return Markup(data)


# The table.


def _columns(board: Board) -> list[dict[str, str]]:
    columns = [("rank", "rank", ""), ("name", "row", ""), ("mean", "mean", "")]
    columns += [("main", "over chance", "")]
    if board.baseline is not None:
        columns.append(("main", "difference", f"to {board.baseline}"))
    for task, metric in board.columns:
        kind = "main" if board.ranked_by.get(task) == metric else "metrics"
        columns.append((kind, plain(task), plain(metric)))
    columns += [("settings", label, "") for label in SETTINGS.values()]
    columns += [("costs", label, "") for label in COSTS.values()]
    return [{"kind": kind, "label": label, "sub": sub} for kind, label, sub in columns]


def _rows(board: Board) -> list[dict[str, Any]]:
    bars = _bars(board.rows)
    rows, before = [], None
    for row, bar in zip(board.rows, bars, strict=True):
        made = made_with(row)
        rows.append(
            {
                "name": row.name,
                "model": row.entry.model_class if _has_name_of_model(row) else row.entry.model,
                "shade": _shade(row),
                "starts_tier": row.rank_text != before,
                "cells": _cells(board, row),
                "bar": bar,
                "command": row.entry.command,
                "made": made,
                "search": plain(
                    f"{row.name} {row.entry.model} {row.entry.settings} {made}"
                ).lower(),
            }
        )
        before = row.rank_text
    return rows


def _shade(row: Row) -> str:
    if row.rank is not None:
        return str(min(row.rank, 3))
    return "none" if row.rank_by_stderr is None else "by-stderr"


def _has_name_of_model(row: Row) -> bool:
    """Whether the row's name begins with the name of its model."""
    return row.name.startswith(short_name(row.entry.runs[0].name))


def _cells(board: Board, row: Row) -> list[dict[str, Any]]:
    rank = row.rank if row.rank is not None else row.rank_by_stderr
    cells = [
        _cell("rank", row.rank_text, "" if rank is None else rank),
        _cell("name", row.name, row.name),
        _number("mean", row.mean, row.mean_stderr),
        _number("main", row.normalised_mean),
    ]
    if board.baseline is not None:
        cells.append(_difference_cell(board, row))
    for task, metric in board.columns:
        cell = row.tasks.get(task, {}).get(metric)
        kind = "main" if board.ranked_by.get(task) == metric else "metrics"
        error = cell.stderr if cell else None
        number = _number(kind, cell.value if cell else None, error)
        number["error"] = number["error"] and f"±{number['error']}"
        cells.append(number)
    for name in SETTINGS:
        value = row.entry.settings.get(name, "")
        cells.append(_cell("settings", plain(value), plain(value)))
    for name, text in cost_texts(row).items():
        value = row.entry.cost[name]
        value = sum(value.values()) if isinstance(value, dict) else value
        cells.append(_cell("costs", text, "" if value is None else value))
    return cells


def _cell(kind: str, text: str, value: Any) -> dict[str, Any]:
    return {"kind": kind, "text": text, "value": value, "error": ""}


def _number(kind: str, value: float | None, error: float | None = None) -> dict[str, Any]:
    if value is None:
        return _cell(kind, "", "")
    cell = _cell(kind, figure(value), value)
    return cell | {"error": "" if error is None else figure(error)}


def _difference_cell(board: Board, row: Row) -> dict[str, Any]:
    interval = board.to_baseline.get(row.name)
    if interval is None:
        return _cell("main", "", "")
    cell = _cell("main", figure(interval.mean, sign="+"), interval.mean)
    known = interval.low == interval.low
    return cell | {"error": f"[{interval.low:+.4f}, {interval.high:+.4f}]" if known else ""}


def _bars(rows: Sequence[Row]) -> list[dict[str, float] | None]:
    """Each row's mean and 95 % interval, scaled to 0 to 100 between the board's extremes."""
    reach = [_reach(row) for row in rows]
    known = [ends for ends in reach if ends is not None]
    if not known:
        return [None] * len(rows)
    low, high = min(a for a, _ in known), max(b for _, b in known)
    scale = 96.0 / ((high - low) or 1.0)

    def place(value: float) -> float:
        return round(2 + (value - low) * scale, 1)

    return [
        {"low": place(ends[0]), "high": place(ends[1]), "at": place(row.mean or 0.0)}
        if ends is not None
        else None
        for row, ends in zip(rows, reach, strict=True)
    ]


def _reach(row: Row) -> tuple[float, float] | None:
    if row.mean is None:
        return None
    half = 1.96 * (row.mean_stderr or 0.0)
    return row.mean - half, row.mean + half


# The chart.


def _charts(board: Board) -> list[Chart]:
    charts = []
    for name, label in COSTS_IN_WORDS.items():
        points = []
        for row in board.rows:
            value = row.entry.cost[name]
            value = sum(value.values()) if isinstance(value, dict) else value
            points.append((row.name, value, row.mean, row.mean_stderr))
        scale = 1e9 if name == "peak_memory_bytes" else 1.0
        drawing = chart(points, label, scale=scale, sign=board.sign)
        charts += [drawing] if drawing else []
    return sorted(charts, key=lambda drawing: -len(drawing.points))


# Document by document.


def _data(board: Board) -> dict[str, Any]:
    places = {row.name: place for place, row in enumerate(board.rows)}
    tasks = [
        _task_data(board, task, metric)
        for task, metric in board.ranked_by.items()
        if any(row.rank is not None for row in board.rows)
    ]
    documents = list(_documents(board, tasks))
    return {
        "rows": [row.name for row in board.rows],
        "pairs": [
            [
                places[pair.first],
                places[pair.second],
                round(pair.difference, 6),
                *([None, None] if pair.interval is None else [round(v, 6) for v in pair.interval]),
                float(f"{pair.p:.4g}"),
                float(f"{pair.adjusted_p:.4g}"),
                pair.num_documents,
            ]
            for pair in board.pairs
        ],
        "tasks": [{k: v for k, v in task.items() if k != "values"} for task in tasks],
        "documents": documents,
    }


def _task_data(board: Board, task: str, metric: str) -> dict[str, Any]:
    """Which documents each row has right, as bits; None for rows on other documents."""
    name, _, filter_name = metric.partition(",")
    reference = next(row for row in board.rows if row.rank is not None)
    ids_N = reference.entry.tasks[task][0].columns[filter_name].doc_ids
    values = []
    for row in board.rows:
        runs = row.entry.tasks.get(task, [])
        column = runs[0].columns.get(filter_name) if len(runs) == 1 and row.rank else None
        same = column is not None and np.array_equal(column.doc_ids, ids_N)
        values_N = column.values.get(name) if column is not None and same else None
        is_right = values_N is not None and np.isin(values_N, (0.0, 1.0)).all()
        values.append(values_N.astype(bool) if values_N is not None and is_right else None)
    right = [None if values_N is None else _bits(values_N) for values_N in values]
    return {"name": plain(task), "n": len(ids_N), "right": right, "values": values}


def _bits(is_right_N: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(is_right_N).tobytes()).decode("ascii")


def _documents(board: Board, tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Documents on which rows disagree, up to `MAX_TEXT_BYTES`; the tasks take turns."""
    queues = []
    for number, task in enumerate(tasks):
        known = [values for values in task["values"] if values is not None]
        if len(known) > 1:
            rights_N = np.sum(known, axis=0)
            places = np.flatnonzero((rights_N > 0) & (rights_N < len(known)))
            queues.append([(number, int(place)) for place in places])
    names, room = list(board.ranked_by.items()), MAX_TEXT_BYTES
    for number, place in filter(None, itertools.chain(*itertools.zip_longest(*queues))):
        task, metric = names[number]
        document = _document(board, task, metric, tasks[number]["values"], place)
        if not document:
            continue
        room -= len(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
        if room < 0:
            return
        yield {"t": number, **document}


def _document(
    board: Board, task: str, metric: str, values: Sequence[Any], place: int
) -> dict[str, Any]:
    filter_name = metric.partition(",")[2]
    runs = [
        row.entry.tasks[task][0] if v is not None else None
        for row, v in zip(board.rows, values, strict=True)
    ]
    samples = [run and _sample(run, filter_name, place) for run in runs]
    first = next((sample for sample in samples if sample), None)
    if first is None:
        return {}
    document = {
        "id": first["doc_id"],
        "place": place,
        "question": plain(_question(first)),
        "gold": plain(gold_text(first, _MAX_ANSWER)),
        "answers": [sample and plain(answer_text(sample, _MAX_ANSWER)) for sample in samples],
    }
    if any(sample and sample.get("thoughts") for sample in samples):
        thoughts = [sample and sample.get("thoughts") for sample in samples]
        document["thoughts"] = [t and plain(clip(t, _MAX_QUESTION)) for t in thoughts]
    return document


def _sample(run: Task, filter_name: str, place: int) -> dict[str, Any] | None:
    if run.samples_file is None:
        return None
    try:
        return read_at(run.samples_file, [int(run.columns[filter_name].offsets[place])])[0]
    except LatentRefError:  # the sample is damaged outside its scores
        return None


def _question(sample: dict[str, Any]) -> str:
    """The document's question if it has a field for it; otherwise the end of the prompt."""
    document = sample.get("doc")
    if isinstance(document, dict):
        for name in _QUESTIONS:
            if isinstance(document.get(name), str):
                return clip(document[name], _MAX_QUESTION)
    prompt = " ".join(str(request(sample, 0).get("arg_0", document)).split())
    return prompt if len(prompt) <= _MAX_QUESTION else f"...{prompt[3 - _MAX_QUESTION :]}"
