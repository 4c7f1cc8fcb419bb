"""Generates reachability questions on small graphs: like ProsQA, but small enough for a CPU.

    rows = list(generate(5000, seed=0, split="test"))
    rows[0]["question"]     # "c>m k>b a>c ... ; b p ; a"
    rows[0]["steps"]        # ["c", "m", "p"]; the answer is the last of them

A problem has two trees. Additional edges inside each tree lead from a node to a deeper node. The
question lists all edges, then two candidates, then one of the roots. The candidates are in
different trees, at the same distance from their roots, so only one can be reached from the given
root. Chance is one half.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lm_eval_latentref.benchmarks.drawing import Row, check_request, distinct, shortest_paths
from lm_eval_latentref.errors import LatentRefError

SYMBOLS = tuple(string.ascii_letters)

NUM_OPEN = 4
"""The parent of a new node is drawn from this many newest nodes of the tree."""


@dataclass(frozen=True)
class _Size:
    nodes: int
    extra: int
    min_hops: int
    max_hops: int
    symbols: int

    def __post_init__(self) -> None:
        if not 2 <= self.nodes <= self.symbols <= len(SYMBOLS):
            raise LatentRefError(
                f"nodes={self.nodes}, symbols={self.symbols}: they must be in order, from 2 to "
                f"{len(SYMBOLS)}"
            )
        if not 1 <= self.min_hops <= self.max_hops:
            raise LatentRefError(
                f"min_hops={self.min_hops}, max_hops={self.max_hops}: they must be in order and at "
                "least 1"
            )
        if self.extra < 0:
            raise LatentRefError(f"extra={self.extra}: it must be at least 0")


def generate(
    num: int,
    *,
    seed: int = 0,
    split: str = "train",
    nodes: int = 14,
    extra: int = 4,
    min_hops: int = 3,
    max_hops: int = 4,
    symbols: int = 16,
) -> Iterator[Row]:
    """Yields `num` problems with distinct graphs; the first n are the same for every `num`.

    Args:
        num: the number of problems, 0 or more.
        seed: any integer; different seeds give different problems.
        split: "train", "validation" or "test"; no graph is in two splits, whatever the seeds.
        nodes: the number of nodes in both trees together.
        extra: the number of additional edges.
        min_hops: the minimum distance of a candidate from its root. Large distances are rare: with
            the defaults, about one problem in a hundred has 4 hops, all others 3.
        max_hops: the maximum distance of a candidate from its root.
        symbols: the number of letters from which the nodes' names are drawn, `nodes` to 52.

    Raises:
        LatentRefError: a value is out of range, or there are fewer than `num` such problems.
    """
    check_request(num, split)
    size = _Size(nodes, extra, min_hops, max_hops, symbols)
    # A string seed goes through SHA-512, so it does not depend on Python's hash randomisation.
    rng = random.Random(f"graph {split} {seed}")
    return islice(distinct(lambda: _draw(rng, size), split, identity=_edges_of), num)


def _edges_of(row: Row) -> str:
    return " ".join(sorted(row["question"].partition(" ; ")[0].split()))


def _draw(rng: random.Random, size: _Size) -> Row | None:
    """A question about a random graph; None if the trees have no candidates at equal distances."""
    trees, edges = _grow(rng, size)
    paths = [shortest_paths(root, edges) for root in (0, 1)]
    pools: dict[int, list[list[int]]] = {}
    for hops in range(size.min_hops, min(size.max_hops, size.nodes) + 1):
        both = [
            [node for node in trees[root] if len(paths[root][node]) == hops + 1] for root in (0, 1)
        ]
        if all(both):
            pools[hops] = both
    if not pools:
        return None
    targets = [rng.choice(pool) for pool in pools[rng.choice(list(pools))]]
    root = rng.randrange(2)
    return _worded(rng, size, edges, targets, root, paths[root][targets[root]])


def _grow(rng: random.Random, size: _Size) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The nodes of both trees, whose roots are 0 and 1, and all edges."""
    trees, depth, edges = [[0], [1]], {0: 0, 1: 0}, []
    for node in range(2, size.nodes):
        tree = trees[rng.randrange(2)]
        parent = rng.choice(tree[-NUM_OPEN:])
        edges.append((parent, node))
        depth[node] = depth[parent] + 1
        tree.append(node)
    tree_edges = set(edges)
    possible = [
        (up, down)
        for tree in trees
        for up in tree
        for down in tree
        if depth[up] < depth[down] and (up, down) not in tree_edges
    ]
    edges += rng.sample(possible, min(size.extra, len(possible)))
    return trees, edges


def _worded(
    rng: random.Random,
    size: _Size,
    edges: list[tuple[int, int]],
    targets: list[int],
    root: int,
    path: tuple[int, ...],
) -> Row:
    names = rng.sample(SYMBOLS[: size.symbols], size.nodes)
    words = [f"{names[up]}>{names[down]}" for up, down in edges]
    rng.shuffle(words)
    candidates = [names[target] for target in targets]
    rng.shuffle(candidates)
    return Row(
        question=f"{' '.join(words)} ; {' '.join(candidates)} ; {names[root]}",
        steps=[names[node] for node in path[1:]],
        answer=names[path[-1]],
        candidates=candidates,
    )
