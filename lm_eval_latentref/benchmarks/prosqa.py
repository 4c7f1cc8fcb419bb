"""ProsQA-style reasoning graphs, generated: no download, any number, the same for the same seed.

    rows = list(generate(500, seed=0, split="test"))
    rows[0]["question"]   # "Every lempus is a rempus. ... Is Tom a rempus or impus?"

A problem is a directed acyclic graph whose edges are facts ("Every A is a B."). Two rivals, both
people, each have descendants the other cannot reach; the question offers one such descendant of
each, and only one can be reached from the person asked about. Row fields, vocabulary and
statistics are those of the real ProsQA (Hao et al., arXiv:2412.06769, appendix A): the constants
below were fitted to its 800 validation and test questions.

Splits are disjoint for every pair of seeds: the facts of a problem alone decide, through a hash,
which split may hold it. No problem has the same facts as a real validation or test question.
Deliberately knows no files, no models and no lm-eval.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

from lm_eval_latentref.benchmarks.prosqa_known import KNOWN_FINGERPRINTS
from lm_eval_latentref.errors import LatentRefError

_PEOPLE = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren"
_CONCEPTS = """
bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus
jelpus jompus kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus
storpus terpus timpus tumpus vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus
"""
PEOPLE = tuple(_PEOPLE.split())
CONCEPTS = tuple(_CONCEPTS.split())

HOP_WEIGHTS = {3: 202, 4: 217, 5: 69, 6: 12}
"""How many questions of the real test split need that many steps."""

SPLIT_BUCKETS = {"test": (0,), "validation": (1,), "train": (2, 3)}
"""Which values of a problem's fingerprint, modulo 4, belong to a split."""

_NODE_MEAN, _NODE_SPREAD, _NODE_RANGE = 23.0, 1.95, (14, 28)
_PARENT_RATE = 1.52
_PARENTLESS_SHARE = 0.04
_RIVAL_SHARES = (0.36, 0.47)
_DEPTH_PULL = 0.9
_SHALLOW_TARGET_SHARE = 0.2


class Row(TypedDict):
    """One problem, in the fields (and their order) of the published files."""

    question: str
    answer: str
    steps: list[str]
    idx_to_symbol: list[str]
    edges: list[list[int]]
    root: int
    target: int
    neg_target: int


@dataclass(frozen=True)
class _Graph:
    """Nodes in topological order; 0 and 1 are the rivals."""

    parents: tuple[tuple[int, ...], ...]
    reached_by: tuple[int, ...]
    """Per node: 1 if rival 0 reaches it, 2 if rival 1 does, 3 for both, 0 for neither."""

    @property
    def edges(self) -> list[list[int]]:
        return [[up, node] for node, ups in enumerate(self.parents) for up in ups]

    @property
    def leaves(self) -> list[int]:
        inner = {up for ups in self.parents for up in ups}
        return [node for node in range(len(self.parents)) if node not in inner]


@dataclass(frozen=True)
class _Problem:
    graph: _Graph
    path: tuple[int, ...]
    """From the person asked about to the right answer, a shortest one."""
    neg_target: int


def generate(num: int, *, seed: int = 0, split: str = "train") -> Iterator[Row]:
    """Yield `num` problems; the first n are the same whatever `num` is.

    Args:
        num: how many, 0 or more.
        seed: any integer; another seed gives other problems.
        split: "train", "validation" or "test"; no problem is in two splits, whatever the seeds.

    Raises:
        LatentRefError: an unknown split or a negative number.
    """
    if num < 0:
        raise LatentRefError(f"{num} problems asked for: give 0 or more")
    if split not in SPLIT_BUCKETS:
        raise LatentRefError(f"split {split!r} is not generated: use {', '.join(SPLIT_BUCKETS)}")
    return islice(_stream(seed, split), num)


def fingerprint(question: str) -> str:
    """Eight hexadecimal digits that tell the facts of `question`, in whatever order they stand."""
    facts = sorted(question.lower().split(". ")[:-1])
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _stream(seed: int, split: str) -> Iterator[Row]:
    # A string seed goes through SHA-512, so it does not depend on Python's hash randomisation.
    rng = random.Random(f"prosqa {split} {seed}")
    seen = set(KNOWN_FINGERPRINTS)
    while True:
        problem = _problem(rng)
        # Renaming the nodes keeps the graph, so choosing by hash leaves the statistics alone.
        while True:
            row = _worded(problem, rng)
            mark = fingerprint(row["question"])
            if int(mark, 16) % 4 in SPLIT_BUCKETS[split] and mark not in seen:
                break
        seen.add(mark)
        yield row


def _problem(rng: random.Random) -> _Problem:
    """A problem with a number of steps drawn from the real distribution."""
    hops = rng.choices(list(HOP_WEIGHTS), list(HOP_WEIGHTS.values()))[0]
    while True:
        graph = _graph(rng)
        if graph is not None and (problem := _posed(graph, hops, rng)) is not None:
            return problem


def _graph(rng: random.Random) -> _Graph | None:
    """Grow a graph node by node; None when a rival has no descendants."""
    low, high = _NODE_RANGE
    num_nodes = min(max(round(rng.gauss(_NODE_MEAN, _NODE_SPREAD)), low), high)
    parents: list[tuple[int, ...]] = [(), ()]
    reached_by, depth = [1, 2], [0, 0]
    for _ in range(2, num_nodes):
        ups = _draw_parents(reached_by, depth, rng)
        parents.append(ups)
        reached_by.append(_union(reached_by[up] for up in ups))
        depth.append(1 + min((depth[up] for up in ups), default=-1))
    used = {up for ups in parents for up in ups}
    if not {0, 1} <= used:
        return None
    kept = [node for node in range(num_nodes) if parents[node] or node in used]
    new_index = {node: index for index, node in enumerate(kept)}
    return _Graph(
        parents=tuple(tuple(new_index[up] for up in parents[node]) for node in kept),
        reached_by=tuple(reached_by[node] for node in kept),
    )


def _draw_parents(reached_by: list[int], depth: list[int], rng: random.Random) -> tuple[int, ...]:
    """Parents of the next node: most nodes stay clear of one rival, deep parents are likelier."""
    if rng.random() < _PARENTLESS_SHARE:
        return ()
    draw, (first, second) = rng.random(), _RIVAL_SHARES
    barred = 2 if draw < first else 1 if draw < first + second else 0
    pool = [node for node, rivals in enumerate(reached_by) if not rivals & barred]
    # u ** (1 / weight), largest first, is a weighted draw without replacement.
    keyed = {node: rng.random() ** (1 / (1 + _DEPTH_PULL * depth[node])) for node in pool}
    chosen = sorted(pool, key=lambda node: keyed[node], reverse=True)[: _positive_poisson(rng)]
    return tuple(sorted(chosen))


def _positive_poisson(rng: random.Random) -> int:
    """A Poisson number of rate `_PARENT_RATE`, drawn until it is not 0 (Knuth's method)."""
    while True:
        count, product = 0, rng.random()
        while product > math.exp(-_PARENT_RATE):
            count, product = count + 1, product * rng.random()
        if count:
            return count


def _union(sets: Iterator[int]) -> int:
    result = 0
    for each in sets:
        result |= each
    return result


def _posed(graph: _Graph, hops: int, rng: random.Random) -> _Problem | None:
    """Ask about the rival whose own descendants go deeper; None if none is `hops` away."""
    routes = [_shortest_paths(graph, rival) for rival in (0, 1)]
    own = [[node for node in graph.leaves if graph.reached_by[node] == 1 + r] for r in (0, 1)]
    deepest = [max((len(routes[r][node]) for node in own[r]), default=0) - 1 for r in (0, 1)]
    candidates = [
        (rival, node)
        for rival in (0, 1)
        if deepest[rival] == max(deepest)
        for node in own[rival]
        if len(routes[rival][node]) - 1 == hops
        and (hops == deepest[rival] or rng.random() < _SHALLOW_TARGET_SHARE)
    ]
    if not candidates:
        return None
    rival, target = rng.choice(candidates)
    if not own[1 - rival]:
        return None
    return _Problem(graph, routes[rival][target], rng.choice(own[1 - rival]))


def _shortest_paths(graph: _Graph, start: int) -> dict[int, tuple[int, ...]]:
    """Per reachable node, the nodes of one shortest path from `start`, both ends included."""
    children: dict[int, list[int]] = {}
    for up, node in graph.edges:
        children.setdefault(up, []).append(node)
    paths: dict[int, tuple[int, ...]] = {start: (start,)}
    queue = [start]
    for node in queue:
        for child in children.get(node, ()):
            if child not in paths:
                paths[child] = (*paths[node], child)
                queue.append(child)
    return paths


def _worded(problem: _Problem, rng: random.Random) -> Row:
    """Name the nodes (people have no parents), shuffle the facts and the two answers on offer."""
    parents, edges = problem.graph.parents, problem.graph.edges
    people = iter(rng.sample(PEOPLE, sum(not ups for ups in parents)))
    concepts = iter(rng.sample(CONCEPTS, sum(bool(ups) for ups in parents)))
    symbols = [next(concepts) if ups else next(people) for ups in parents]

    def fact(up: int, node: int) -> str:
        subject = f"Every {symbols[up]}" if parents[up] else symbols[up]
        return f"{subject} is a {symbols[node]}."

    facts = [fact(up, node) for up, node in edges]
    rng.shuffle(facts)
    root, target = problem.path[0], problem.path[-1]
    offered = [symbols[target], symbols[problem.neg_target]]
    rng.shuffle(offered)
    return Row(
        question=f"{' '.join(facts)} Is {symbols[root]} a {offered[0]} or {offered[1]}?",
        answer=f"{symbols[root]} is a {symbols[target]}.",
        steps=[fact(*hop) for hop in zip(problem.path, problem.path[1:], strict=False)],
        idx_to_symbol=symbols,
        edges=edges,
        root=root,
        target=target,
        neg_target=problem.neg_target,
    )
