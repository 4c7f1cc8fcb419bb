"""Checks the figures in a FINDINGS.md against the files in its folder.

    unsupported(Path("results/graph-small"))      # [] or ["12.5 %", ...]

A figure is supported if some number in the folder's JSON files equals it, after conversion to the
figure's unit and rounding, or if a page other than FINDINGS.md prints it with the same unit. An
unsigned figure may also be a negative number ("loses 1.2 points"). Not checked: code, names
(SmolLM2, T=6), numbers in words, one-digit whole numbers without a unit (numbers of statements,
counts), and bounds ("p < 0.05"), which need an assertion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = "FINDINGS.md"
SCALES = {"%": 100.0, "points": 100.0, "ms": 1e3, "GB": 1e-9, "minutes": 1 / 60}
"""What a unit makes of the number in the JSON files; other units are theirs."""

_NUMBER = r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
_UNIT = rf"\s*(?P<unit>%|(?:{'|'.join(name for name in SCALES if name != '%')}|nats)\b)"
# "1.20", "-3 %", "98 to 100 %", "+1.20 [-0.30, +2.70] points": one unit for all of them.
_QUOTED = re.compile(
    rf"(?<![\w.=/-])(?P<numbers>{_NUMBER}(?:\s+(?:to|and|or)\s+{_NUMBER})?"
    rf"(?:\s+\[{_NUMBER},\s+{_NUMBER}\])?)(?![\w/-]|\.\d)(?:{_UNIT})?"
)
_NOT_QUOTED = re.compile(
    r"```.*?```|`[^`]*`|\]\([^)]*\)|^ *\d+\. |arXiv:\S+|[<>]=? *[\d.]+", re.M | re.S
)


class Figure(NamedTuple):
    """A number as printed, with its unit or an empty string."""

    text: str
    unit: str

    @property
    def value(self) -> float:
        return float(self.text.replace(",", ""))

    @property
    def half_a_digit(self) -> float:
        """The largest rounding error of the printed number."""
        mantissa, _, exponent = self.text.partition("e")
        return 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))

    def is_of(self, number: float) -> bool:
        """Whether `number`, rounded, is printed like this."""
        scaled = number * SCALES.get(self.unit, 1.0)
        scaled = scaled if self.text[0] in "+-" else abs(scaled)
        return abs(scaled - self.value) <= self.half_a_digit * (1 + 1e-9)

    def __str__(self) -> str:
        return f"{self.text} {self.unit}".strip()


def figures(text: str) -> list[Figure]:
    """All figures that `text` quotes."""
    plain = _NOT_QUOTED.sub(" ", text)
    quoted = [
        Figure(number, match["unit"] or "")
        for match in _QUOTED.finditer(plain)
        for number in re.findall(_NUMBER, match["numbers"])
    ]
    return [figure for figure in quoted if figure.unit or len(figure.text) > 1]


def unsupported(folder: Path) -> list[str]:
    """The figures in the folder's FINDINGS.md that are in no other file there."""
    written = [json.loads(path.read_text("utf-8")) for path in sorted(folder.rglob("*.json"))]
    numbers = [number for content in written for number in _leaves(content)]
    pages = [path for path in folder.rglob("*.md") if path.name != PAGE]
    printed = {str(figure) for path in pages for figure in figures(path.read_text("utf-8"))}
    return [
        str(figure)
        for figure in figures((folder / PAGE).read_text("utf-8"))
        if str(figure) not in printed and not any(figure.is_of(number) for number in numbers)
    ]


def _leaves(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _leaves(part)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield float(content)
