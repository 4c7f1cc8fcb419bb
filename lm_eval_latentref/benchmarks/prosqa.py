"""Generates problems like those of ProsQA, in any number, without a download, from a seed.

    rows = list(generate(500, seed=0, split="test"))
    rows[0]["question"]   # "Every lempus is a rempus. ... Is Tom a rempus or impus?"

A problem is a directed acyclic graph whose edges are facts ("Every A is a B."). Two of its nodes,
the rivals, are people; each has descendants that the other cannot reach. The question names one of
the rivals and two candidates, one such descendant of each rival, so only one candidate can be
reached. Row fields, vocabulary and statistics are those of the published ProsQA (Hao et al.,
arXiv:2412.06769, appendix A): the constants below were fitted to its 800 validation and test
questions.

A hash of a problem's facts determines its split, so splits are disjoint for all seeds. No problem
has the same facts as a published validation or test question; this package contains only hashes of
these.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

from lm_eval_latentref.benchmarks.drawing import (
    MOST_FAILURES,
    SPLIT_BUCKETS,
    check_request,
    shortest_paths,
)
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
"""For each number of steps, the number of questions in the published test split."""
_SHORT_WEIGHT = HOP_WEIGHTS[3]
"""The weight of one and of two steps, which no published question has."""

_NODE_MEAN, _NODE_SPREAD, _NODE_RANGE = 23.0, 1.95, (14, 28)
"""The mean, standard deviation and range of the number of nodes."""
_PARENT_RATE = 1.52
"""The rate of the Poisson distribution of a node's number of parents."""
_PARENTLESS_SHARE = 0.04
"""The share of nodes without parents."""
_RIVAL_SHARES = (0.36, 0.47)
"""The shares of nodes that only rival 0 and only rival 1 may reach."""
_DEPTH_PULL = 0.9
"""The increase of a node's weight as a parent with its depth."""
_SHALLOW_TARGET_SHARE = 0.2
"""The probability of accepting a target that is not at the greatest depth."""


class Row(TypedDict):
    """A problem, with the fields of the published files in their order."""

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
    """For each node: 1 if only rival 0 reaches it, 2 if only rival 1 does, 3 if both, 0 if none."""

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
    """A shortest path from the rival in the question to the right candidate."""
    neg_target: int
    """The wrong candidate."""


@dataclass(frozen=True)
class _Size:
    min_nodes: int | None
    max_nodes: int | None
    min_hops: int
    max_hops: int

    def __post_init__(self) -> None:
        if (self.min_nodes is None) != (self.max_nodes is None):
            raise LatentRefError("min_nodes and max_nodes belong together: give both or neither")
        low, high = self.nodes
        if not 4 <= low <= high <= _NODE_RANGE[1]:
            raise LatentRefError(
                f"min_nodes={low}, max_nodes={high}: they must be in order, from 4 to "
                f"{_NODE_RANGE[1]}"
            )
        if not 1 <= self.min_hops <= self.max_hops <= max(HOP_WEIGHTS):
            raise LatentRefError(
                f"min_hops={self.min_hops}, max_hops={self.max_hops}: they must be in order, from "
                f"1 to {max(HOP_WEIGHTS)}"
            )

    @property
    def nodes(self) -> tuple[int, int]:
        if self.min_nodes is None or self.max_nodes is None:
            return _NODE_RANGE
        return self.min_nodes, self.max_nodes

    @property
    def hop_weights(self) -> dict[int, int]:
        hops = range(self.min_hops, self.max_hops + 1)
        return {number: HOP_WEIGHTS.get(number, _SHORT_WEIGHT) for number in hops}

    def draw_nodes(self, rng: random.Random) -> int:
        low, high = self.nodes
        if self.min_nodes is not None:
            return rng.randint(low, high)
        return min(max(round(rng.gauss(_NODE_MEAN, _NODE_SPREAD)), low), high)


def generate(
    num: int,
    *,
    seed: int = 0,
    split: str = "train",
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    min_hops: int = 3,
    max_hops: int = 6,
) -> Iterator[Row]:
    """Yields `num` problems; the first n are the same for every `num`.

    Args:
        num: the number of problems, 0 or more.
        seed: any integer; different seeds give different problems.
        split: "train", "validation" or "test"; no problem is in two splits, whatever the seeds.
        min_nodes: with `max_nodes`, each number of nodes between them is equally likely before
            nodes without edges are left out; without them, the published distribution is used.
        max_nodes: at most 28.
        min_hops: the minimum number of steps.
        max_hops: the maximum number of steps, at most 6. Numbers of steps between them have the
            frequencies of the published test split; 1 and 2 are as frequent as 3.

    Raises:
        LatentRefError: a value is out of range, or there are no such problems.
    """
    check_request(num, split)
    size = _Size(min_nodes, max_nodes, min_hops, max_hops)
    return islice(_stream(seed, split, size), num)


def fingerprint(question: str) -> str:
    """Eight hexadecimal digits that identify the facts in `question`, whatever their order."""
    facts = sorted(question.lower().split(". ")[:-1])
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _stream(seed: int, split: str, size: _Size) -> Iterator[Row]:
    # A string seed goes through SHA-512, so it does not depend on Python's hash randomisation.
    rng = random.Random(f"prosqa {split} {seed}")
    seen = set(KNOWN_FINGERPRINTS)
    while True:
        problem = _problem(rng, size)
        # New names do not change the graph, so this loop does not change the statistics.
        for _ in range(MOST_FAILURES):
            row = _worded(problem, rng)
            digits = fingerprint(row["question"])
            if int(digits, 16) % 4 in SPLIT_BUCKETS[split] and digits not in seen:
                break
        else:
            raise LatentRefError(
                f"these options give hardly more than {len(seen) - len(KNOWN_FINGERPRINTS)} "
                f"problems of {split}; give more nodes, or a smaller number of problems"
            )
        seen.add(digits)
        yield row


def _problem(rng: random.Random, size: _Size) -> _Problem:
    """A random problem; its number of steps is drawn first."""
    weights = size.hop_weights
    hops = rng.choices(list(weights), list(weights.values()))[0]
    for _ in range(MOST_FAILURES):
        graph = _graph(rng, size.draw_nodes(rng))
        if graph is not None and (problem := _posed(graph, hops, rng)) is not None:
            return problem
    raise LatentRefError(
        f"no problem of {hops} steps in {MOST_FAILURES} graphs of {size.nodes[0]} to "
        f"{size.nodes[1]} nodes: give more nodes or fewer steps (max_hops)"
    )


def _graph(rng: random.Random, num_nodes: int) -> _Graph | None:
    """A random graph; None if a rival has no descendants."""
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
    """Random parents of the next node.

    Most nodes have no parents that are reached by one of the rivals; deep parents are more likely.
    """
    if rng.random() < _PARENTLESS_SHARE:
        return ()
    draw, (first, second) = rng.random(), _RIVAL_SHARES
    barred = 2 if draw < first else 1 if draw < first + second else 0
    pool = [node for node, rivals in enumerate(reached_by) if not rivals & barred]
    # The nodes with the largest u ** (1 / weight) are a weighted sample without replacement.
    keys = {node: rng.random() ** (1 / (1 + _DEPTH_PULL * depth[node])) for node in pool}
    chosen = sorted(pool, key=lambda node: keys[node], reverse=True)[: _positive_poisson(rng)]
    return tuple(sorted(chosen))


def _positive_poisson(rng: random.Random) -> int:
    """A positive Poisson number with rate `_PARENT_RATE` (Knuth's method, repeated until > 0)."""
    while True:
        count, product = 0, rng.random()
        while product > math.exp(-_PARENT_RATE):
            count, product = count + 1, product * rng.random()
        if count:
            return count


def _union(sets: Iterator[int]) -> int:
    result = 0
    for rivals in sets:
        result |= rivals
    return result


def _posed(graph: _Graph, hops: int, rng: random.Random) -> _Problem | None:
    """A question about `graph` whose answer takes `hops` steps; None if there is none.

    The question is about the rival with the deeper descendants of its own.
    """
    routes = [shortest_paths(rival, graph.edges) for rival in (0, 1)]
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


def _worded(problem: _Problem, rng: random.Random) -> Row:
    """The row of `problem`, with random names and random orders of facts and candidates.

    Nodes without parents are people.
    """
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
