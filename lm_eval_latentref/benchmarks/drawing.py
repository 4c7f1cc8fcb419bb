"""Helpers of the generators: disjoint splits, and shortest paths in graphs.

    problems = distinct(draw, "test", identity=lambda row: row["question"])
    shortest_paths(0, [(0, 1), (1, 2)])[2]          # (0, 1, 2)

A hash of the problem determines its split, so splits are disjoint for all seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypedDict

from lm_eval_latentref.errors import LatentRefError

SPLIT_BUCKETS = {"test": (0,), "validation": (1,), "train": (2, 3)}
"""For each split, the values of a problem's hash modulo 4."""

MOST_FAILURES = 10_000
"""After this many consecutive draws without a new problem, there are no more problems."""


class Row(TypedDict):
    """A problem: the fields of Coconut's data files, and the candidate answers."""

    question: str
    steps: list[str]
    answer: str
    candidates: list[str]


def check_request(num: int, split: str) -> None:
    """Raises LatentRefError unless `num` is an integer >= 0 and `split` is a generated split."""
    if type(num) is not int or num < 0:
        raise LatentRefError(f"the number of problems is {num!r}: give an integer, 0 or more")
    if split not in SPLIT_BUCKETS:
        raise LatentRefError(f"split {split!r} is not generated: use {', '.join(SPLIT_BUCKETS)}")


def distinct(
    draw: Callable[[], Row | None], split: str, *, identity: Callable[[Row], str]
) -> Iterator[Row]:
    """Yields different problems of `split`.

    Args:
        draw: returns a random problem of any split, or None if the attempt failed.
        identity: returns the text that identifies a problem; its hash determines the split.

    Raises:
        LatentRefError: there are no more problems.
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
        f"these options give only {len(seen)} problems of {split}; give options that allow more, "
        "or a smaller number of problems"
    )


def shortest_paths(start: int, edges: Iterable[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """For each reachable node, the nodes of a shortest path from `start`, both ends included."""
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
