"""`latentref check`: prints the gate's report, or updates the baseline or golden file.

    status = gate("results/new", baseline="results/old", format="markdown")
    update_baseline("results/new", "baseline.yaml")     # or a folder, which then holds these files
    update_golden("results/new", "golden.json")
    print(render(report, "junit"))

In a GitHub workflow the report is also appended to the job summary.
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pytablewriter import MarkdownTableWriter, SpaceAlignedTableWriter
from pytablewriter.writer import AbstractTableWriter

from lm_eval_latentref.checkpoints.files import replacing
from lm_eval_latentref.errors import LatentRefError, printable, saving, say
from lm_eval_latentref.evaluation.baseline import (
    Values,
    read_baseline,
    replace_values,
    write_baseline,
)
from lm_eval_latentref.evaluation.check import (
    STATUS,
    Measured,
    Report,
    check,
    difference_from_file,
    is_yaml,
    read_measured,
)
from lm_eval_latentref.evaluation.check_rules import Result
from lm_eval_latentref.evaluation.golden import Answers, answers, write_golden
from lm_eval_latentref.evaluation.results import Run, read_results
from lm_eval_latentref.evaluation.wording import figure


def gate(
    candidate: str | Path,
    *,
    update: bool = False,
    write_golden: bool | str = False,
    format: str = "text",
    **options: Any,
) -> int:
    """Prints the report, or updates the baseline or golden file; returns the exit status.

    Args:
        candidate: the results to judge.
        update: whether the results of `candidate` become the new baseline.
        write_golden: the golden file to write; True for `options["golden"]`.
        format: the format of the report, one of `FORMATS`.
        options: further arguments of `check`.
    """
    baseline = options.get("baseline")
    if write_golden:
        return _write_golden(candidate, write_golden, options)
    if update and not (baseline and Path(baseline).exists()):
        return _update(candidate, baseline)
    report = check(candidate, **options)
    print(render(report, format))
    if update:
        return _update(candidate, baseline)
    announce(report)
    return STATUS[report.verdict]


def _update(candidate: str | Path, baseline: str | None) -> int:
    if baseline is None:
        raise LatentRefError("--update: no baseline is named; give --baseline FILE")
    update_baseline(candidate, baseline)
    say(f"{baseline} now holds what {candidate} measured")
    return 0


def _write_golden(candidate: str | Path, file: bool | str, options: dict[str, Any]) -> int:
    file = options.get("golden", "") if file is True else str(file)
    if not file:
        raise LatentRefError("--write_golden: no file is named; give --write_golden FILE.json")
    tolerance = update_golden(candidate, file, again=options.get("baseline"))
    say(f"{file}: log-likelihoods may differ by {tolerance:.2g} nats")
    return 0


def update_baseline(candidate: str | Path, baseline: str | Path) -> None:
    """Replaces `baseline` by the results of `candidate`; a missing file or folder is created.

    In an existing YAML file only the values change; a new file holds every metric. In a folder,
    the candidate's files replace lm-eval's files.

    Raises:
        LatentRefError: the candidate lacks a metric of the file, or its shots or documents differ
            from the file's.
    """
    measured, path = read_measured(candidate), Path(baseline)
    if not is_yaml(path):
        _replace_folder(measured, path)
    elif path.exists():
        _replace_values(measured, path)
    else:
        write_baseline(path, _all_values(measured), _head(measured))


def update_golden(
    candidate: str | Path, golden: str | Path, *, again: str | Path | None = None
) -> float:
    """Writes the golden file of the candidate's samples and returns its tolerance in nats.

    Args:
        again: a second run of the same model, whose difference from the first sets the tolerance.
    """
    measured = read_measured(candidate)
    versions = {name: text for run in measured.runs.values() for name, text in run.versions.items()}
    second = None if again is None else _answers(read_measured(again))
    return write_golden(Path(golden), _answers(measured), made_with=versions, again=second)


def _answers(measured: Measured) -> Answers:
    files = {name: task.samples_file for name, task in measured.tasks.items()}
    logged = {name: file for name, file in files.items() if file is not None}
    if not logged:
        raise LatentRefError(f"{measured.name} has no samples; evaluate with --log_samples")
    return answers(logged)


def _replace_values(measured: Measured, path: Path) -> None:
    baseline = read_baseline(path)
    for expected in baseline.metrics:
        if reason := difference_from_file(measured, expected, baseline):
            raise LatentRefError(
                f"{path} is not updated: {expected.task} {expected.metric}: {reason}; evaluate "
                "with the file's settings, or change the file"
            )
    replace_values(path, _all_values(measured))


def _all_values(measured: Measured) -> Values:
    values = {}
    for name, task in measured.tasks.items():
        for metric, score in task.scores.items():
            values[name, metric] = {"value": round(score.value, 6)}
            if score.stderr is not None:
                values[name, metric]["stderr"] = round(score.stderr, 6)
    return values


def _head(measured: Measured) -> dict[str, Any]:
    """The keys of a new file other than its tasks."""
    limits = {run.limit for run in measured.runs.values()}
    shots = {task.num_fewshot for task in measured.tasks.values()} - {None}
    if len(limits) > 1 or len(shots) > 1:
        raise LatentRefError(
            f"{measured.name} holds runs of several limits or num_fewshot; write a file for each"
        )
    run = next(iter(measured.runs.values()))
    head: dict[str, Any] = {"model_name": str(run.model_args.get("pretrained", run.name))}
    (limit,) = limits
    # null means all documents, so that a later run with --limit is refused.
    head["limit"] = int(limit) if limit is not None and limit.is_integer() else limit
    return head | ({"num_fewshot": shots.pop()} if shots else {})


def _replace_folder(measured: Measured, folder: Path) -> None:
    if folder.is_file():
        raise LatentRefError(f"{folder} is a file; name a folder, or a .yaml file, to update")
    old = read_results([folder]).runs if folder.exists() else []
    files = _files(measured.runs.values())
    kept = {file.name for file in files}
    if len(kept) < len(files):
        raise LatentRefError(
            f"{folder} is not updated: {measured.name} holds several files of one name; rename them"
        )
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.resolve() != (folder / file.name).resolve():
                with replacing(folder / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        for file in _files(old):
            if file.name not in kept or file.parent != folder:
                file.unlink()


def _files(runs: Iterable[Run]) -> list[Path]:
    """The results files of `runs`, and the samples of their tasks."""
    by_file = {run.file: run for run in runs}
    samples = [task.samples_file for run in by_file.values() for task in run.tasks.values()]
    return [*by_file, *(file for file in samples if file is not None)]


SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"

_HEADERS = ("task", "metric", "baseline", "candidate", "difference", "interval", "p", "verdict")
_FLIP_HEADERS = ("task", "metric", "document", "value", "gold", "baseline", "candidate")


def render(report: Report, format: str) -> str:
    """The report as `format`, one of `FORMATS`."""
    return FORMATS[format](report)


def announce(report: Report) -> None:
    """In a GitHub workflow, appends the report to the job summary and prints `::error` lines.

    These lines go to stderr, so that stdout holds the report alone.
    """
    summary = os.environ.get(SUMMARY_VARIABLE)
    if not summary:
        return
    with saving(summary), open(summary, "a", encoding="utf-8") as file:
        file.write(_markdown(report) + "\n")
    for result in report.results:
        if level := {"fail": "error", "inconclusive": "warning"}.get(result.verdict):
            # GitHub decodes %XX in these lines, so that a % must be written as %25.
            text = _reason(result).replace("%", "%25")
            say(f"::{level} title=latentref check::{text}")


def _text(report: Report) -> str:
    rows = [_cells(result) for result in report.results]
    lines = [_table(SpaceAlignedTableWriter, _HEADERS, rows), *_reasons(report)]
    if flips := _flips(report):
        lines += ["", _table(SpaceAlignedTableWriter, _FLIP_HEADERS, flips)]
    return "\n".join([*lines, f"verdict: {report.verdict}"])


def _markdown(report: Report) -> str:
    rows = [[_inert(cell) for cell in _cells(result)] for result in report.results]
    lines = [f"### latentref check: {report.verdict}", ""]
    lines += [_table(MarkdownTableWriter, _HEADERS, rows), ""]
    lines += [f"- {_inert(line)}" for line in _reasons(report)]
    if flips := _flips(report):
        cells = [[_inert(cell) for cell in row] for row in flips]
        lines += ["", _table(MarkdownTableWriter, _FLIP_HEADERS, cells)]
    return "\n".join(lines)


def _json(report: Report) -> str:
    return json.dumps({"verdict": report.verdict, **dataclasses.asdict(report)}, indent=2)


def _junit(report: Report) -> str:
    counts = {
        "tests": len(report.results),
        "failures": sum(result.verdict == "fail" for result in report.results),
        "skipped": sum(result.verdict == "inconclusive" for result in report.results),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    suite = ElementTree.Element("testsuite", {"name": "latentref check", **attributes})
    for result in report.results:
        names = {"classname": printable(result.task), "name": printable(result.metric)}
        case = ElementTree.SubElement(suite, "testcase", names)
        if tag := {"fail": "failure", "inconclusive": "skipped"}.get(result.verdict):
            ElementTree.SubElement(case, tag, message=printable(result.reason))
    if flips := _flips(report):
        out = ElementTree.SubElement(suite, "system-out")
        out.text = _table(SpaceAlignedTableWriter, _FLIP_HEADERS, flips)
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
    # XML allows these two not even escaped; `printable` has removed the others.
    return text.translate({0xFFFE: "\ufffd", 0xFFFF: "\ufffd"})


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": _text,
    "json": _json,
    "markdown": _markdown,
    "junit": _junit,
}


def _cells(result: Result) -> list[str]:
    interval = result.interval
    return [
        printable(result.task),
        printable(result.metric),
        _number(result.baseline),
        _number(result.candidate),
        "" if result.difference is None else figure(result.difference, sign="+"),
        "" if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]",
        _probability(result.p_value),
        result.verdict,
    ]


def _flips(report: Report) -> list[list[str]]:
    return [
        [
            printable(result.task),
            printable(result.metric),
            str(flip.document),
            f"{flip.baseline:g} to {flip.candidate:g}",
            printable(flip.gold),
            printable(flip.baseline_answer),
            printable(flip.candidate_answer),
        ]
        for result in report.results
        for flip in result.flips
    ]


def _table(
    writer_class: type[AbstractTableWriter], headers: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    writer = writer_class(headers=headers, value_matrix=rows, margin=1)
    writer.type_hints = ["str"] * len(headers)  # numbers are formatted already
    return str(writer.dumps()).rstrip()


def _reasons(report: Report) -> list[str]:
    return [_reason(result) for result in report.results if result.reason]


def _reason(result: Result) -> str:
    return printable(f"{result.task} {result.metric}: {result.reason}")


def _number(value: float | None) -> str:
    return "" if value is None else figure(value)


def _probability(value: float | None) -> str:
    return "<0.0001" if value is not None and value < 0.0001 else _number(value)


def _inert(text: str) -> str:
    """`text` in one line, escaped so that Markdown and HTML show it unchanged."""
    for mark in "\\`*[]~$":
        text = text.replace(mark, f"\\{mark}")
    text = html.escape(" ".join(text.split()), quote=False)
    # The comment keeps GitHub from notifying a user or linking an issue of that name.
    return re.sub("[@#]", r"\g<0><!-- -->", text)
