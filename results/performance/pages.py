"""The record and the page of a measurement: a table, targets and limits, what repeats it.

report = Report(name="generation", header=("", "documents/s"), rows=rounds.rows(), record={})
report.judge("time of a / b", rounds.ratio("a", "b"), at_least=2.5)
return report.finish(args)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import clock_of, spread
from workload import device

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.provenance import command, machine, versions


@dataclass(kw_only=True)
class Report:
    """A finished measurement."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    record: dict[str, Any]
    """All of it as JSON values."""
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Checks of equal answers that did not hold; the numbers are then worth nothing."""
    profile: str = ""
    """A table of where our time goes."""
    missed: list[str] = field(default_factory=list)

    def check(self, holds: bool, failure: str) -> None:
        if not holds:
            self.failures.append(failure)

    def judge(
        self,
        what: str,
        values: Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        tiny: bool = False,
        limit: tuple[float, str] | None = None,
    ) -> None:
        """Adds the sentence on whether the median of `values` reaches its target.

        Args:
            limit: what the median would be at best, and by what that is counted or measured; a
                second sentence compares the median with it.
        """
        value = statistics.median(values)
        self.record.setdefault("judged", {})[what] = list(values)
        if tiny or at_least is at_most is None:
            self.remarks.append(f"{what}: {spread(values)}.")
        else:
            reached = value >= at_least if at_least is not None else value <= (at_most or 0)
            bound = f"at least {at_least:.3g}" if at_least is not None else f"at most {at_most:g}"
            verdict = "reached" if reached else "MISSED"
            self.remarks.append(f"{what}: {spread(values)}, to be {bound}: {verdict}.")
            if not reached:
                self.missed.append(self.remarks[-1])
        if limit is not None:
            most, by = limit
            better = "more" if at_most is None else "less"
            self.record.setdefault("limits", {})[what] = most
            self.remarks.append(
                f"{what}: the limit by {by} is {most:.3g}; the median is {value / most:.0%} of it "
                f"({better} is better)."
            )

    def table(self) -> str:
        lines = [tuple(self.header), *map(tuple, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        text.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(
            [
                *(*text, "", *self.remarks, *(f"FAILED: {failure}" for failure in self.failures)),
                *(("", self.profile) if self.profile else ()),
            ]
        )

    def page(self, about: str) -> str:
        """The table with what it is about and what repeats it, as Markdown.

        Args:
            about: the docstring of the script.
        """
        given = {name: value for name, value in self.record["options"].items() if value}
        lists = {"options, with defaults": given}
        lists |= {name: self.record[name] for name in ("versions", "machine")}
        ends = [
            f"{name.capitalize()}: {', '.join(f'{k} {v}' for k, v in values.items())}."
            for name, values in lists.items()
        ]
        prose = [part for part in about.strip().split("\n\n") if not part.startswith("    ")]
        written = "Last written" if {"work", "axis"} & self.record["options"].keys() else "Written"
        written += f" by `{self.record['command']}`; all of it is in the JSON file beside it."
        table = f"```\n{self.table()}\n```"
        return "\n\n".join([f"# {self.name}", *prose, written, table, *ends, ""])

    def finish(self, args: argparse.Namespace) -> int:
        """Prints the table and the JSON line, writes both where asked; the exit status."""
        options = {
            key: value
            for key, value in vars(args).items()
            if key not in ("output", "profile", "about")
        }
        if clock_of(args) is time.process_time:
            self.remarks.append("Seconds are those that the process computed.")
        ends = {"failures": self.failures, "missed": self.missed}
        self.record |= {
            "options": options,
            "device": str(device()),
            "versions": versions(),
            "machine": machine(),
        }
        self.record["command"] = f"python results/performance/{command()}"
        line = json.dumps({"bench": self.name, **ends, **self.record}, default=str)
        print(f"{self.table()}\n{line}")
        if args.output:
            path = Path(args.output)
            path.write_text(line + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(self.page(args.about), encoding="utf-8")
        return int(bool(self.failures or self.missed))


def kept(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """What an earlier run wrote to `args.output` under `part`, if nothing there differs from now.

    Nothing are the machine, the versions and the dtype.
    """
    if not args.output or not Path(args.output).exists():
        return {}
    try:
        record = json.loads(Path(args.output).read_text(encoding="utf-8"))
        kept_part, dtype = record[part], record["options"]["dtype"]
    except (ValueError, LookupError, TypeError) as error:
        raise LatentRefError(
            f"-o {args.output} is not a record of this script; give another name"
        ) from error
    now = {"machine": machine(), "versions": versions()}
    same = all(record.get(name) == value for name, value in now.items())
    return kept_part if same and dtype == args.dtype else {}
