"""Generated problems: which split may hold one, and streams that never repeat one.

    problems = distinct(draw, "test", identity=lambda row: row["question"])

The hash of a problem decides its split, so splits are disjoint whatever the seeds. Knows no task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TypedDict

from lm_eval_latentref.errors import LatentRefError

SPLIT_BUCKETS = {"test": (0,), "validation": (1,), "train": (2, 3)}
"""Which values of a problem's hash, modulo 4, belong to a split."""

MOST_FAILURES = 10_000
"""Draws in a row without a new problem after which there is taken to be none."""


class Row(TypedDict):
    """One problem: the fields of Coconut's data files, and the answers on offer."""

    question: str
    steps: list[str]
    answer: str
    candidates: list[str]


def check_request(num: int, split: str) -> None:
    """Raises LatentRefError for a negative number or a split that is not generated."""
    if num < 0:
        raise LatentRefError(f"{num} problems asked for: give 0 or more")
    if split not in SPLIT_BUCKETS:
        raise LatentRefError(f"split {split!r} is not generated: use {', '.join(SPLIT_BUCKETS)}")


def distinct(
    draw: Callable[[], Row | None], split: str, *, identity: Callable[[Row], str]
) -> Iterator[Row]:
    """Yields the problems that `draw` makes, those of `split` only and each once.

    Args:
        draw: makes a problem, or None where an attempt came to nothing.
        identity: what makes two problems the same; its hash decides the split.

    Raises:
        LatentRefError: no new problem comes.
    """
    seen: set[bytes] = set()
    failures = 0
    while failures < MOST_FAILURES:
        failures += 1
        if (row := draw()) is None:
            continue
        digest = hashlib.sha256(identity(row).encode()).digest()
        if digest[0] % 4 in SPLIT_BUCKETS[split] and digest not in seen:
            seen.add(digest)
            failures = 0
            yield row
    raise LatentRefError(
        f"no problem follows the {len(seen)} of {split} drawn so far with these options; give "
        "options that allow more problems, or ask for fewer"
    )
