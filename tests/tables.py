"""Tables of pages as tests look into them."""

from __future__ import annotations


def squeezed(page: str) -> str:
    """`page` with table cells that are not padded: "| both | 24.20 |"."""
    return "\n".join(_row(line) if line.startswith("|") else line for line in page.split("\n"))


def _row(line: str) -> str:
    return f"| {' | '.join(cell.strip() for cell in line.strip('|').split('|'))} |"
