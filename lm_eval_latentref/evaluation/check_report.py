"""What `latentref check` prints: a table for people, JSON, Markdown and JUnit for machines.

print(render(report, "markdown"))
announce(report)        # the job summary and error lines of a GitHub workflow
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
import sys
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from pytablewriter import MarkdownTableWriter, SpaceAlignedTableWriter
from pytablewriter.writer import AbstractTableWriter

from lm_eval_latentref.errors import printable, saving
from lm_eval_latentref.evaluation.check import Report
from lm_eval_latentref.evaluation.check_rules import Result

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"

_HEADERS = ("task", "metric", "baseline", "candidate", "difference", "interval", "p", "verdict")
_FLIP_HEADERS = ("task", "metric", "document", "value", "gold", "baseline", "candidate")


def render(report: Report, format: str) -> str:
    """The report as `format`, one of `FORMATS`."""
    return FORMATS[format](report)


def announce(report: Report) -> None:
    """In a GitHub workflow: appends the report to the job summary and prints `::error` lines.

    The lines go to stderr, so that stdout holds nothing but the report.
    """
    summary = os.environ.get(SUMMARY_VARIABLE)
    if not summary:
        return
    with saving(summary), open(summary, "a", encoding="utf-8") as file:
        file.write(_markdown(report) + "\n")
    for result in report.results:
        if level := {"fail": "error", "inconclusive": "warning"}.get(result.verdict):
            # GitHub decodes these: a % of a name must not become something else.
            text = _reason(result).replace("%", "%25")
            print(f"::{level} title=latentref check::{text}", file=sys.stderr)


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
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": _text,
    "json": _json,
    "markdown": _markdown,
    "junit": _junit,
}


def _cells(result: Result) -> list[str]:
    interval = result.interval
    return [
        *(printable(result.task), printable(result.metric)),
        *(_number(result.baseline), _number(result.candidate)),
        "" if result.difference is None else f"{result.difference:+.4f}",
        "" if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]",
        _number(result.p_value),
        result.verdict,
    ]


def _flips(report: Report) -> list[list[str]]:
    return [
        [
            *(printable(result.task), printable(result.metric), str(flip.document)),
            f"{flip.baseline:g} to {flip.candidate:g}",
            *(printable(flip.gold), printable(flip.baseline_answer)),
            printable(flip.candidate_answer),
        ]
        for result in report.results
        for flip in result.flips
    ]


def _table(
    writer_class: type[AbstractTableWriter], headers: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    writer = writer_class(headers=headers, value_matrix=rows, margin=1)
    writer.type_hints = ["str"] * len(headers)  # numbers stay as they are written here
    return str(writer.dumps()).rstrip()


def _reasons(report: Report) -> list[str]:
    return [_reason(result) for result in report.results if result.reason]


def _reason(result: Result) -> str:
    return printable(f"{result.task} {result.metric}: {result.reason}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _inert(text: str) -> str:
    """Text that Markdown and HTML show as it is, in one line."""
    for mark in "\\`*[]":
        text = text.replace(mark, f"\\{mark}")
    # A comment between the two keeps GitHub from notifying whoever is named so.
    return html.escape(" ".join(text.split()), quote=False).replace("@", "@<!-- -->")
