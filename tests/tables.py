"""Helper for tests that read the tables of pages."""

from __future__ import annotations


def squeezed(page: str) -> str:
    """`page` without padding in table cells: "| both | 24.20 |"."""
    return "\n".join(_row(line) if line.startswith("|") else line for line in page.split("\n"))


def _row(line: str) -> str:
    return f"| {' | '.join(cell.strip() for cell in line.strip('|').split('|'))} |"
