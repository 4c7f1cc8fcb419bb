"""Writes a leaderboard as text, Markdown, CSV, JSON, HTML, or as entries for the hub.

print(as_text(board))
save(board, "board.html")           # the suffix sets the format; a folder gets all formats
save_eval_results(board, "hub")     # .eval_results/*.yaml for each row
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.benchmarks.published import HUB_SETS
from lm_eval_latentref.checkpoints.files import write_text
from lm_eval_latentref.errors import LatentRefError, saving, say
from lm_eval_latentref.evaluation.board import (
    COSTS,
    Board,
    Cell,
    Row,
    cost_texts,
    made_with,
)
from lm_eval_latentref.evaluation.entries import SETTINGS
from lm_eval_latentref.evaluation.leaderboard import METRICS, leaderboard, state_of
from lm_eval_latentref.evaluation.leaderboard_page import LEGEND, as_html
from lm_eval_latentref.evaluation.results import BOARD_FORMAT, Task
from lm_eval_latentref.evaluation.templates import render
from lm_eval_latentref.evaluation.wording import figure, markdown, plain, table


def show(
    results: Sequence[str],
    *,
    output: str | None = None,
    eval_results: str | None = None,
    watch: float | None = None,
    metric: Sequence[str] = METRICS,
    **options: Any,
) -> None:
    """Prints the board of `results` and writes it; `options` are those of `leaderboard`.

    Args:
        output: the target of `save`.
        eval_results: the folder of `save_eval_results`.
        watch: seconds between two checks for new or changed results, until interrupted; None to
            read the results once.
        metric: the `metrics` of `leaderboard`.
    """
    if output is not None:
        check_output(output)
    before = None
    while True:
        state = state_of(results)
        try:
            if state != before:
                board = leaderboard(results, metrics=metric, **options)
                _write(board, output, eval_results)
        except LatentRefError as error:
            if watch is None:
                raise
            say(error)  # missing results may be there at the next check
        if watch is None:
            return
        before = state
        time.sleep(watch)


def _write(board: Board, output: str | None, eval_results: str | None) -> None:
    if eval_results is not None:
        save_eval_results(board, eval_results)
    print(as_text(board), flush=True)
    for file in save(board, output) if output is not None else ():
        say(file)


def as_json(board: Board) -> dict[str, Any]:
    """The whole board as JSON values: `rows` in order, `pairs`, metrics, notes."""
    return {
        "format": f"{BOARD_FORMAT} 1",
        "rows": [_row_values(board, row) for row in board.rows],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "difference": pair.difference,
                "interval": pair.interval and list(pair.interval),
                "p": pair.p,
                "adjusted_p": pair.adjusted_p,
                "paired": pair.paired,
                "n": pair.num_documents,
                "flips": pair.flips and list(pair.flips),
            }
            for pair in board.pairs
        ],
        "ranked_by": board.ranked_by,
        "chance": board.chance,
        "baseline": board.baseline,
        "notes": board.notes,
        "left_out": board.left_out,
    }


def as_text(board: Board) -> str:
    """The table for a terminal, with the notes below it."""
    lines = [table(*_table(board, plain), numbers_from=2), "", LEGEND]
    lines += [f"note: {note}" for note in board.notes]
    lines += [f"left out: {reason}" for reason in board.left_out]
    return "\n".join(lines)


def as_markdown(board: Board) -> str:
    """A page with the table, and the command of each row."""
    rows = [
        {
            "name": markdown(row.name),
            "command": row.entry.command.replace("```", ""),
            "made": markdown(made_with(row)),
        }
        for row in board.rows
    ]
    return render(
        "leaderboard.md.j2",
        table=table(*_table(board, markdown), numbers_from=2),
        legend=LEGEND,
        notes=[markdown(note) for note in board.notes],
        left_out=[markdown(reason) for reason in board.left_out],
        rows=rows,
    )


def as_csv(board: Board) -> str:
    """One line per row: unrounded numbers, with the standard error beside each score."""
    lines = []
    for row in board.rows:
        values = _row_values(board, row)
        line: dict[str, Any] = {
            "rank": row.rank,
            "rank_by_stderr": row.rank_by_stderr,
            "name": _inert(row.name),
        }
        line |= {name: values[name] for name in ("mean", "mean_stderr", "normalised_mean")}
        for task, metric in board.columns:
            cell = row.tasks.get(task, {}).get(metric)
            name = _inert(f"{task}:{metric}")
            line[name], line[f"{name}:stderr"], line[f"{name}:n"] = (
                (cell.value, cell.stderr, cell.n) if cell else (None, None, None)
            )
        settings = {label: row.entry.settings.get(name, "") for name, label in SETTINGS.items()}
        line |= {label: _inert_value(value) for label, value in settings.items()}
        cost = dict(row.entry.cost)
        forwards = cost.pop("forwards_per_document") or {}
        line |= {**cost, "forwards_per_document": sum(forwards.values()) if forwards else None}
        lines.append(line)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _json_text(board: Board) -> str:
    return json.dumps(as_json(board), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


WRITERS: Mapping[str, Callable[[Board], str]] = {
    ".txt": lambda board: as_text(board) + "\n",
    ".md": as_markdown,
    ".csv": as_csv,
    ".json": _json_text,
    ".html": as_html,
}


def check_output(target: str | Path) -> None:
    """Raises LatentRefError if `target` has a suffix that is not in `WRITERS`."""
    suffix = Path(target).suffix.lower()
    if suffix and suffix not in WRITERS and not Path(target).is_dir():
        raise LatentRefError(
            f"-o {plain(target)}: the suffix must be one of {', '.join(WRITERS)}; a name without a "
            "suffix is a folder for all formats"
        )


def save(board: Board, target: str | Path) -> list[Path]:
    """Writes the board into the file `target`, in the format of its suffix.

    A `target` without a suffix is a folder, which gets all formats. Returns the written files.
    """
    check_output(target)
    path = Path(target)
    write = WRITERS.get(path.suffix.lower())
    if write is not None and not path.is_dir():
        files = {path: write}
    else:
        files = {path / f"leaderboard{suffix}": kind for suffix, kind in WRITERS.items()}
    for file, kind in files.items():
        with saving(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, kind(board))
    return list(files)


def save_eval_results(board: Board, folder: str | Path) -> list[Path]:
    """Writes FOLDER/ROW/.eval_results/TASK.yaml, to be copied into a model's repository on the hub.

    Tasks whose data set is not on the hub are left out, with a note on the board.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files, skipped = [], set()
    folders = _folders([row.name for row in board.rows])
    for row, own in zip(board.rows, folders, strict=True):
        for name, (task, *_) in row.entry.tasks.items():
            if (dataset := _hub_id(row, task)) is None:
                skipped.add(plain(name))
                continue
            entries = [
                EvalResultEntry(
                    dataset_id=dataset,
                    task_id=plain(name),
                    value=cell.value,
                    date=(row.entry.made_with["date"] or "")[:10] or None,
                    notes=_notes(row, task, metric, cell),
                )
                for metric, cell in row.tasks[name].items()
            ]
            file = Path(folder) / own / ".eval_results" / f"{_slug(name)}.yaml"
            with saving(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
            write_text(file, text)
            files.append(file)
    if skipped:
        board.notes.append(
            f"not written to {plain(folder)}, because their data sets have no id on the hub: "
            + ", ".join(sorted(skipped))
        )
    return files


def _table(board: Board, escape: Callable[[Any], str]) -> tuple[list[str], list[list[str]]]:
    """The headers and rows of the table, without columns that are empty in every row."""
    headers = ["rank", "row", "mean", "over chance"]
    headers += [f"- {board.baseline}"] if board.baseline is not None else []
    headers += [f"{task} {metric}" for task, metric in board.columns]
    headers += [*SETTINGS.values(), *COSTS.values()]
    rows = [_texts(board, row) for row in board.rows]
    used = [k for k in range(len(headers)) if k < 3 or any(row[k] for row in rows)]
    return (
        [escape(headers[k]) for k in used],
        [[escape(row[k]) for k in used] for row in rows],
    )


def _texts(board: Board, row: Row) -> list[str]:
    texts = [row.rank_text, row.name, _with_error(row.mean, row.mean_stderr)]
    texts.append("" if row.normalised_mean is None else f"{row.normalised_mean:.4f}")
    if board.baseline is not None:
        texts.append(_to_baseline(board, row))
    cells = [row.tasks.get(task, {}).get(metric) for task, metric in board.columns]
    texts += [_with_error(cell.value, cell.stderr) if cell else "" for cell in cells]
    texts += [str(row.entry.settings.get(name, "")) for name in SETTINGS]
    return [*texts, *cost_texts(row).values()]


def _to_baseline(board: Board, row: Row) -> str:
    interval = board.to_baseline.get(row.name)
    if interval is None:
        return ""
    bounds = f" [{interval.low:+.4f}, {interval.high:+.4f}]" if interval.low == interval.low else ""
    return f"{figure(interval.mean, sign='+')}{bounds}"


def _with_error(value: float | None, stderr: float | None) -> str:
    if value is None:
        return ""
    return figure(value) + ("" if stderr is None else f" ± {figure(stderr)}")


def _row_values(board: Board, row: Row) -> dict[str, Any]:
    interval = board.to_baseline.get(row.name)
    is_known = interval is not None and interval.low == interval.low
    bounds = [interval.low, interval.high] if interval is not None and is_known else None
    return {
        "name": row.name,
        "model": row.entry.model,
        "rank": row.rank,
        "rank_by_stderr": row.rank_by_stderr,
        "tasks": {
            task: {
                metric: {"value": cell.value, "stderr": cell.stderr, "n": cell.n}
                for metric, cell in cells.items()
            }
            for task, cells in row.tasks.items()
        },
        "mean": row.mean,
        "mean_stderr": row.mean_stderr,
        "normalised_mean": row.normalised_mean,
        "to_baseline": interval and {"difference": interval.mean, "interval": bounds},
        "cost": row.entry.cost,
        "settings": row.entry.settings,
        "command": row.entry.command,
        "checkpoints": row.entry.checkpoints,
        **row.entry.made_with,
    }


def _hub_id(row: Row, task: Task) -> str | None:
    """The hub's id of the data set that the task loads; None if it is not on the hub."""
    path = task.config.get("dataset_path")
    if isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return path
    splits = [split.partition(" ")[0] for split in row.entry.made_with["data"]]
    own = {name for name in splits if f"_{name}" in task.name and name in HUB_SETS}
    return HUB_SETS[own.pop()][0] if len(own) == 1 else None


def _notes(row: Row, task: Task, metric: str, cell: Cell) -> str:
    settings = [f"{name}={value}" for name, value in row.entry.settings.items()]
    shots = [] if task.num_fewshot is None else [f"{task.num_fewshot}-shot"]
    error = [] if cell.stderr is None else [f"stderr {cell.stderr:.4f}"]
    return plain(", ".join([metric, *shots, f"{cell.n} documents", *error, *settings]))


def _folders(names: Sequence[str]) -> list[str]:
    """A folder name for each row; a number is added to names that would be the same."""
    slugs = [_slug(name) for name in names]
    return [
        slug if slugs.index(slug) == place else f"{slug}-{place + 1}"
        for place, slug in enumerate(slugs)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", plain(name)).strip("-.") or "row"


def _inert_value(value: Any) -> Any:
    return value if isinstance(value, int | float) else _inert(plain(value))


def _inert(text: str) -> str:
    """`text`, escaped so that a spreadsheet does not read it as a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text
