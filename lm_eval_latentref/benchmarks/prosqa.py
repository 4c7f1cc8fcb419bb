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
        while True:
            row = _worded(problem, rng)
            digits = fingerprint(row["question"])
            if int(digits, 16) % 4 in SPLIT_BUCKETS[split] and digits not in seen:
                break
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


_FINGERPRINTS = """
    001e6f96 005bf160 00672478 0095e8ec 00d062ce 012d467b 01f6a64a 025cc8ff 02a5614c 03215b9b
    0355ee64 037d99f7 03b1dfb8 03c88bee 03d562f1 048cc66e 04fd68ee 0534ee4a 06fcf0e4 072522c5
    074028d2 07feb0bd 088e60c8 08ba3b9b 08d4ec28 090e4079 0919b2f3 0927c8ac 0a119a6f 0a24d704
    0a307c40 0a51ea32 0a5d7d33 0a9c7ef6 0aa96c90 0ab9ff9e 0b3d0df8 0b4a6f6a 0b6e952d 0c4630b7
    0ca08ddf 0ca846aa 0cce36f0 0d0dfb95 0d0ea4b8 0e2029b3 0e857841 0ebed667 0ef5ee4a 0f188e38
    0f30a8a9 0f35c6df 0fbe00d4 0fe736c1 10a9dfa3 117dee59 1192aef4 11a8ca84 11d594dd 127d0fe6
    12b0d543 12d41a7a 1317091b 1331c91f 13594e75 13750686 137db37a 13b9848f 141b121b 142baabb
    143601cd 14ff8ec0 15b19152 15bac31b 166c690f 16b9d1bf 16d0c243 16dbabf7 16e1b302 170b35c0
    17363f5e 17f44771 188bd3f3 18a64cef 18f5ccca 193bea00 1a1fd525 1a26a9cc 1aae268c 1ac60c84
    1bc9c010 1c01b822 1c14134a 1c625d7b 1cbe4d58 1cdcf456 1cf26773 1d51a967 1d8fbf82 1db6a21a
    1e0fb1cf 1ef33d57 1f63f6b8 1f648db3 1f78def0 1f8c7f59 1ff9a022 2086aa49 209f7156 20a04b18
    20ae2c0d 21893e1f 21ba1799 21bfd738 21ec918d 220c7529 221f92f2 22229018 22699fab 2279b191
    232566ab 232680b6 249c653f 249dcec6 24e322fc 26440bec 2664cff5 26684ac0 26bea457 294f3933
    2a08c9f9 2a223ca7 2b0d4583 2b0e514d 2ba3a068 2bb3519f 2bb7bb99 2bdebf91 2c470aaa 2d1c6521
    2d3030e9 2d36d809 2d4fe6e5 2d50e2da 2d71564f 2de30e7c 2de80992 2e6a1e87 2ef11ddc 2f0e6e62
    2f88f608 2f9aa95a 2fba22d6 2fc3e61d 2fff3294 30951cd6 30b3ed98 310f131e 31bba93b 31f8b98c
    322fa4ee 34082aef 343a928e 351c5866 355a22b9 35630efd 35a9e5ef 35c29452 35d5711a 360ee816
    36498461 3686f339 37143aeb 373e3f5b 37565bbb 37f882d9 3853f5c9 3909022d 39686906 39bb0ada
    3a190cea 3a35c3ad 3a42dc1d 3b9c1cf1 3be46596 3d11955a 3d768869 3e0e97a7 3e181e2e 3f184811
    3f2fa0be 3fe9fde7 401eee40 40a51bcc 40b344af 40f8b6a4 418625d2 41916a80 41bfa545 41f6d54e
    42370e8c 424bfd15 425ecb71 428ea274 42b03d72 430420a4 431b99bc 43368696 4384456a 43ddb6e3
    44628ce9 44932d0d 4561b899 461932cb 465a55dc 4678acb4 4683e27e 46b5aed5 47072028 4731944b
    477978fd 478b1fcd 47b76184 48e84b72 492f315f 493b17fd 4957a99c 4a6ced0d 4abc8a48 4afa66c9
    4b048e27 4b6f8c93 4b7aa336 4bd42513 4be5e2f0 4c1d301a 4c963a30 4d02791a 4d0d07c7 4d34732c
    4d5301ec 4d7f08ff 4dd9a62a 4e71c864 4e7e5818 4eae8d71 4ebd0922 4ed5f978 4edbdbf3 4edc5d05
    4edd65ec 4f0010fb 4f0d47a8 4f15ec28 4f86ecbd 5003d425 501403bd 5036c879 50f9fa91 51afea3b
    520304a6 52306e6a 5253cc08 52f4954c 52fa5973 533d7465 53859a51 541fc5b2 5448f94a 551534e6
    552f846a 55552da9 558fc1c6 55ca0b8c 561a19c7 57130781 575659cc 577a664c 57a4d7b4 5839b176
    584f3c98 5861c0ea 58af9b96 59040513 5919fddf 595d9adb 5a0e72ce 5a0f5eb8 5a3008ba 5a58d81e
    5a5fa3bc 5abf5af6 5ad9987b 5ae82f0e 5b157c22 5bb1e711 5cb89de2 5ce087cc 5d41c762 5d9d67f8
    5dc53d72 5ebee917 5f0ba8a5 5f16e31e 5f7ef079 5f90d09b 5fb2eb9e 5fe2a6e3 5ff8981d 5ff98bd7
    60108cf2 603a797b 6050f1e1 60a28188 60ae1adc 60c9fe77 61aba032 61ec555e 62183c5a 636676f2
    6426b454 6448529c 649b2e5b 64d438b2 65798286 6583a627 659f17f9 65fcdab8 664ccf8d 66d0d7e3
    670d455c 673ffb98 6772fc6a 678b65b5 67b2c8f7 67bf42f8 67ea788c 67f7adb7 68fae59f 690ab6e8
    69311ab3 69463339 6a28518b 6a7a30cb 6b475845 6b7bf840 6b85bc1c 6b8a997e 6bde857f 6cf77683
    6cffecdb 6d437eac 6d68d652 6d8f1c9c 6dca4fc3 6e8afabd 6e90eff3 6ec2c29e 6ee421fc 6ef70a04
    6f1beb92 6f5ad967 6f7d701c 6fff377f 70084720 703af578 7063b11b 7157f8fa 7193fab1 71ff1002
    72aac8cf 730c3d3d 73435d22 73729c49 73cbb2ea 74157dac 74ce1137 750c7da6 751dbf42 756dd900
    758ed4b1 75d859a8 75f06efe 768506c1 77034026 772c0aa2 7737a7e6 7797b9b0 77ab6a0a 79029fb9
    790aa81e 7a3ea2f4 7b06b2e8 7b52620c 7be0f63b 7c6daaa8 7ce11225 7d6ff3e4 7d85332d 7ddf182e
    7e4b5242 7e6a9b0b 7e92331a 7eb6b0b5 7ee0490d 7fb5b008 7fd53988 7fd91334 7fdc7314 801aef22
    801f86dc 802e058f 80d9cd49 80e04f7b 8180a62b 818520ce 81b95816 81cc6b71 81d8053a 825d07d0
    82d0636f 82efd349 84184a61 84522131 84acbcb4 85b4bd6f 85ed0a50 85fe776a 86289c9b 8683881d
    86a6de1b 86d378bc 86f62ff5 874942f4 87ae2611 87cc6a33 87e5271d 87f408f7 887f1de0 888710ec
    890e096f 89b51a22 89dfed8b 8a1eedeb 8a45a118 8ad8f9ea 8b1dd7ae 8b556a8b 8b95ebe3 8bb327b6
    8bbced2f 8bbf5e04 8c13367f 8c3a7cac 8cb476d4 8cbd1764 8ce89aa3 8cf389da 8d5ac06e 8d89a272
    8dd03915 8e79c09f 8ea005e1 8ed9c9dd 8ef21db0 8f368bc1 905c04f8 90ae6315 91c681a0 921802f1
    92415f7b 92696b81 9299fd01 92c7a622 9341031e 9367da44 937bd1d2 93c4ab29 93cb3ace 94157511
    945877e4 948cd8bd 953fd731 95f7adac 96179e32 961c941e 9636e94c 9685f42a 96a9cd7c 96c14cb8
    97902828 97b0fcc0 97fb33d9 9815405a 98541e3a 9867e125 986c3d99 98aa03c5 98ad5d8c 9962072e
    99a65bc2 99b2b8cd 99cd087e 9a6e1ad7 9b13ad39 9b20ec7d 9b4c131a 9b80f4c8 9bd633f2 9c1b6d9f
    9c57ccfa 9c7ef8a8 9c86744c 9cdaf243 9ce65567 9d116246 9d11f0e1 9d240846 9d2986f3 9d3bed98
    9d46dbe1 9d795d53 9dbda494 9df7236f 9e41ff94 9edade54 9f39f0c2 9f909b57 9fec31b9 a029a1c8
    a062f941 a1e93fb5 a1f9d39b a236b87f a26fdfbe a349c38c a42c08ea a4df1253 a50fc942 a5804acb
    a679c889 a67f5910 a6999086 a6a4b3db a706a19d a8998976 a8b395ed a977dc0b a98e51d6 a9dbf6e4
    aa6ad527 aaa6f822 ab260a1a ab57a51f ac00e188 ac39f40e ac413fbd ac79540a acb86b4f acc1cf50
    ad0beab8 ae02f82a aeadf964 aeb6a2c8 af2c907a af359ce9 af6e54e6 afd316e8 b03cff04 b09f83b6
    b1fb29ca b1fe7c5b b232f319 b26705fc b29d3586 b3219ea2 b32e0415 b3945077 b3a83f0a b4b65a4e
    b50c52cc b52b2442 b5bcdb4d b5f588b1 b61c0602 b7abdf44 b7bbb57f b7db0165 b891e1ba b8dcd0b4
    b8ec9273 b8f1d6f8 b94315ac b964847b b9afd44c b9bc288d b9dd0f84 b9f4606b ba53fb79 bb027047
    bb463013 bbc28305 bc5fcd32 bc67379c bcc9f1c5 bd0bd619 bd131423 bd1d2474 be1e25c6 be7eb5f7
    beff9a60 bf1b853d bf846d41 bfc8e46f c01f51d7 c117ae9a c136a78c c14f285c c1c18d32 c1fa94c2
    c21bf596 c261c132 c287bf1c c2f61ab9 c30be5df c3822f75 c3f31b26 c44f22df c47d4eda c4b03517
    c4d943d9 c569fe89 c5942be3 c5ad584f c5bb4e38 c5d76155 c6e8d2b0 c7374569 c7466042 c7b5acb0
    c7bba910 c7ed4d4d c7edfe39 c8288cfc c88fe195 c8b2656a c8d9b869 c92dc3ec c98d3634 c996fdae
    c9ca59ed ca91633b caef1e45 cb10db33 cb1c95c5 cb871178 cbca98e1 cca9798e ccb91cc7 cccf88de
    cd6c43b5 cde4bb62 ce36e99d ce5435e9 ce75e160 cee970d7 cfbcb019 cfc9ea09 cff0580b d01b836a
    d09c1814 d09d3454 d0cea41d d162df86 d1d9ffa7 d205aa86 d20c32e0 d22571ae d2a01d52 d2bc55ee
    d2dab4be d2e56c51 d343df73 d388d716 d3c0e8b7 d48951e1 d48eeb30 d4aa884e d4b02dea d4c0df50
    d4f5324e d4fdefc9 d5076ba8 d517c28c d6a6594b d6a8166c d6eae612 d74d9b41 d774ee6b d799decd
    d7cabe72 d7eb3034 d8580a2a d85eb31f d93f395f d964af5e d9ac1e2a d9c61d74 db63a637 db99f9aa
    dc40a7bb dc4f70a1 dc9bfe21 dcd803d7 dcf66f0f dd321a87 dd8df99e dda84e2d ddac0fe6 dec89ea1
    decc645e df6d42bb e1b91f76 e256544a e281e680 e2dcbcc8 e3cf8f1d e3f66694 e3f9a507 e46dc252
    e4717167 e4c6c2b3 e56fe99d e65aa79a e65bdd9b e66d4d07 e68c8765 e6f5bcf1 e73e8081 e7738d55
    e79366b6 e8599e28 e8a0086f e8e3f76b e91c83d2 e947fb9a e94aea50 e9fb44a9 ead90f71 eb02bd65
    ebeb1f0e ec8b6c02 ecd8e4bd ed1de2a1 ed449fc5 ed49fbd6 edf889c8 ee0450a5 ee41ed3c eedab3d1
    ef9ead35 f0d93859 f10ac762 f13d9718 f16aebee f25fc7da f3e143e7 f43ef8ca f48ccf07 f4923bd3
    f5046ac3 f54bc8b5 f54efcea f5c29bc0 f5cac497 f5d5e18b f61b38b3 f64331e2 f680ad58 f6bbf803
    f6f44ad1 f7c74099 f88264fb f8fb8f47 f930b52b f957903a f9a17640 fa3ce662 fa3feafc fa8ad5ef
    fabb9239 fbb86d28 fda23946 fdbb8026 fdf2b9f8 fedc91ec ff73aada ff9818fd ffcc1805 ffef0366
"""

KNOWN_FINGERPRINTS = frozenset(_FINGERPRINTS.split())
