"""Rounds in turn, medians with their spread, a table and one JSON line.

    rounds = alternate([Side("hf", hf_answers), Side("latentref", our_answers)], documents,
                       rounds=3, per_round=32)
    print(report.table()); print(report.line())

Deliberately knows no models and no benchmarks: a side is a function from documents to answers.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.provenance import command, machine, versions

NUM_WARM_UP = 2
"""Documents that each side answers before the clock runs."""


@dataclass(frozen=True)
class Side:
    """One way of answering documents."""

    name: str
    answer: Callable[[Sequence[Any]], list[Any]]
    most: int | None = None
    """How many of a round's documents it answers, the first ones; None for all."""


@dataclass(frozen=True)
class Round:
    """What each side did with the same documents, by the side's name."""

    seconds: dict[str, float]
    answers: dict[str, list[Any]]
    documents: dict[str, int]
    """How many each side answered."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"

    def rounded(self) -> dict[str, float]:
        """The three numbers as JSON values, four digits each."""
        return {name: float(f"{value:.4g}") for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished measurement."""

    bench: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remarks: list[str]
    """Sentences below the table."""

    record: dict[str, Any]
    """All of it as JSON values."""

    failures: list[str] = field(default_factory=list)
    """Checks of equal answers that did not hold; the numbers are then worth nothing."""

    @property
    def missed(self) -> list[str]:
        """The verdicts among the remarks whose target is not reached."""
        return [one for one in self.remarks if isinstance(one, Verdict) and not one.reached]

    def table(self) -> str:
        """The numbers for people."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        text.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*text, "", *self.remarks, *(f"FAILED: {what}" for what in self.failures)])

    def line(self) -> str:
        """The numbers for machines."""
        ends = {"failures": self.failures, "missed": self.missed}
        return json.dumps({"bench": self.bench, **ends, **self.record})

    def page(self) -> str:
        """The table with what repeats it, as Markdown."""
        record = self.record
        where = [
            f"{kind.capitalize()}: {', '.join(f'{k} {v}' for k, v in record[kind].items())}."
            for kind in ("versions", "machine")
            if kind in record
        ]
        parts = [
            f"# latentref bench {self.bench}",
            f"Written by `{record.get('command', '')}`; all of it is in the JSON file beside it.",
            f"```\n{self.table()}\n```",
            *where,
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, path: str) -> None:
        """Write the JSON line to a file, whose folder is made, and the page beside it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(self.line() + "\n", encoding="utf-8")
        Path(path).with_suffix(".md").write_text(self.page(), encoding="utf-8")


def alternate(
    sides: Sequence[Side], documents: Sequence[Any], *, rounds: int, per_round: int
) -> list[Round]:
    """Let all sides answer the same `per_round` documents, fresh ones in each round.

    Who comes first changes from round to round. Raises LatentRefError when there are too few
    documents; some more are used up for warming up.
    """
    needed = rounds * per_round + NUM_WARM_UP
    if rounds < 1 or per_round < 1 or needed > len(documents):
        raise LatentRefError(
            f"rounds={rounds} of documents={per_round} take {needed} documents, there are "
            f"{len(documents)}; lower --rounds or --documents (at least 1 each)"
        )
    for side in sides:
        side.answer(documents[:NUM_WARM_UP])
    found = []
    for number in range(rounds):
        start = NUM_WARM_UP + number * per_round
        batch = documents[start : start + per_round]
        order = sides if number % 2 == 0 else sides[::-1]
        timed = {side.name: timed_call(side.answer, batch[: side.most]) for side in order}
        found.append(
            Round(
                {name: seconds for name, (seconds, _) in timed.items()},
                {name: answers for name, (_, answers) in timed.items()},
                {side.name: len(batch[: side.most]) for side in order},
            )
        )
    return found


def timed_call(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds that `call(*args)` takes until the device is done, and what it returns."""
    gc.collect()
    _wait_for_device()
    started = time.perf_counter()
    result = call(*args)
    _wait_for_device()
    return time.perf_counter() - started, result


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare_speed(rounds: Sequence[Round], *, slow: str, fast: str) -> Comparison:
    """Documents a second of two sides and the ratio of their times a document, round by round."""
    by_round = {
        name: [one.documents[name] / one.seconds[name] for one in rounds] for name in (slow, fast)
    }
    speeds = {name: Spread.of(values) for name, values in by_round.items()}
    ratio = Spread.of([b / a for a, b in zip(by_round[slow], by_round[fast], strict=True)])
    return Comparison(slow, fast, speeds, ratio, [one.seconds for one in rounds])


@dataclass(frozen=True)
class Comparison:
    """How two sides compare; `ratio` is the time of `slow` over that of `fast`."""

    slow: str
    fast: str
    speeds: dict[str, Spread]
    ratio: Spread
    seconds: list[dict[str, float]]

    HEADER = ("", "documents/s: median (range)")

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each side, one for their ratio."""
        sides = [(name, str(self.speeds[name])) for name in (self.slow, self.fast)]
        return [*sides, (f"time of {self.slow} / {self.fast}", str(self.ratio))]

    def report(
        self, bench: str, *, remarks: list[str], failures: list[str], **record: Any
    ) -> Report:
        """The report of this comparison, with what else is to be recorded."""
        return Report(
            bench=bench,
            header=self.HEADER,
            rows=self.rows(),
            remarks=remarks,
            record={**self.record(), **record},
            failures=failures,
        )

    def record(self) -> dict[str, Any]:
        """Speeds, ratio and the seconds of every round as JSON values."""
        return {
            "documents_per_second": {name: s.rounded() for name, s in self.speeds.items()},
            "ratio": self.ratio.rounded(),
            "seconds": [{n: round(s, 4) for n, s in one.items()} for one in self.seconds],
        }


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the numbers depend on besides the code: versions, machine, threads, command."""
    return {
        "device": str(device),
        "versions": versions(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "command": command(),
    }


class Verdict(str):
    """One sentence on whether a target is reached."""

    reached: bool


def verdict(what: str, value: float, *, at_least: float = 0.0, at_most: float = 0.0) -> Verdict:
    """The sentence on `value`, which is to be at least or at most what is given."""
    reached = value >= at_least if at_least else value <= at_most
    bound = f"at least {at_least:g}" if at_least else f"at most {at_most:g}"
    sentence = Verdict(f"{what}: {value:.3g}, to be {bound}: {'reached' if reached else 'MISSED'}.")
    sentence.reached = reached
    return sentence
