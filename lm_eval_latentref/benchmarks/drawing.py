"""Shared by the generators: splits without a problem in common, and shortest paths.

    problems = distinct(draw, "test", identity=lambda row: row["question"])
    shortest_paths(0, [(0, 1), (1, 2)])[2]          # (0, 1, 2)

The hash of a problem decides its split, so splits are disjoint whatever the seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypedDict

from lm_eval_latentref.errors import LatentRefError

SPLIT_BUCKETS = {"test": (0,), "validation": (1,), "train": (2, 3)}
"""The values of a problem's hash, modulo 4, that belong to each split."""

MOST_FAILURES = 10_000
"""After this many draws in a row without a new problem, the problems count as exhausted."""


class Row(TypedDict):
    """One problem: the fields of Coconut's data files, and the candidate answers."""

    question: str
    steps: list[str]
    answer: str
    candidates: list[str]


def check_request(num: int, split: str) -> None:
    """Raises LatentRefError for what is no number of problems and a split that is not generated."""
    if type(num) is not int or num < 0:
        raise LatentRefError(f"{num!r} problems asked for: give an integer, 0 or more")
    if split not in SPLIT_BUCKETS:
        raise LatentRefError(f"split {split!r} is not generated: use {', '.join(SPLIT_BUCKETS)}")


def distinct(
    draw: Callable[[], Row | None], split: str, *, identity: Callable[[Row], str]
) -> Iterator[Row]:
    """Yields the problems from `draw` that belong to `split`, each once.

    Args:
        draw: makes a problem; None if an attempt failed.
        identity: two problems with the same identity are the same; its hash decides the split.

    Raises:
        LatentRefError: the problems are exhausted.
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
        f"these options give no more than {len(seen)} problems of {split}; give options that "
        "allow more, or ask for fewer"
    )


def shortest_paths(start: int, edges: Iterable[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """For each reachable node, the nodes of one shortest path from `start`, ends included."""
    children: dict[int, list[int]] = {}
    for up, down in edges:
        children.setdefault(up, []).append(down)
    paths: dict[int, tuple[int, ...]] = {start: (start,)}
    queue = [start]
    for node in queue:
        for child in children.get(node, ()):
            if child not in paths:
                paths[child] = (*paths[node], child)
                queue.append(child)
    return paths
