"""A training file's rows as examples, and what is said of the rows that break a rule.

    examples, bad = parse_examples("train.json", text)
    summary(bad)        # "answer is not a text: line 3; it is no JSON object: lines 5, 7-9"

The format is Coconut's: a JSON list or JSON lines of objects with `question`, `steps`, `answer`.
Deliberately knows no benchmark and no generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lm_eval_latentref.checkpoints.files import one_line, parse_json
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import Example

MOST_SHOWN = 10
"""Places that a summary names for each rule; more would not be read."""


class BadRow(NamedTuple):
    """A row that is left out."""

    number: int
    """Its line, or its place in a list, counted from 1."""
    rule: str
    """The first that it breaks."""


def parse_examples(path: str, text: str) -> tuple[list[Example], list[BadRow]]:
    """The examples in `text`, and the rows of it that are none.

    Raises LatentRefError that names `path` if a list is broken off.
    """
    examples, bad = [], []
    for number, value in _rows(path, text):
        rule = "it is no JSON object" if value is None else _broken_rule(value)
        if rule:
            bad.append(BadRow(number, rule))
        else:
            steps = tuple(value["steps"])
            examples.append(Example(value["question"], steps, value["answer"]))
    return examples, bad


def summary(bad: Sequence[BadRow], unit: str = "line") -> str:
    """The broken rules, each with the first of its lines or rows (`unit`)."""
    numbers: dict[str, list[int]] = {}
    for row in bad:
        numbers.setdefault(row.rule, []).append(row.number)
    return "; ".join(f"{rule}: {_places(found, unit)}" for rule, found in numbers.items())


def _places(numbers: Sequence[int], unit: str) -> str:
    """ "line 3", or "lines 3, 7-9 and 12 more"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    shown = ", ".join("-".join(map(str, ends)) for ends in ranges[:MOST_SHOWN])
    num_left = sum(ends[-1] - ends[0] + 1 for ends in ranges[MOST_SHOWN:])
    more = f" and {num_left} more" if num_left else ""
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}{more}"


def _rows(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """Each row with its number in a list or its line; None for a line that is no JSON."""
    if is_list(text):
        try:
            yield from enumerate(parse_json(text), start=1)
        except (ValueError, RecursionError) as error:
            raise LatentRefError(
                f"{path} is broken off or no JSON ({one_line(error)}); mend the file"
            ) from error
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except (ValueError, RecursionError):
                yield number, None


def is_list(text: str) -> bool:
    """Whether the rows are one JSON list; else, there is one in each line."""
    return text.lstrip().startswith("[")


def _broken_rule(value: Any) -> str | None:
    """The first rule that a row breaks; None for a good one."""
    if not isinstance(value, dict):
        return "it is no JSON object"
    for name in ("question", "answer"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            return f"{name} is not a text"
    steps = value.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return "steps is not a list of texts"
    if "#" in value["answer"]:
        return "answer contains '#', which marks where it begins"
    return None
