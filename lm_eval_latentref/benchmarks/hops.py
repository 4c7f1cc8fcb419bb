"""Generated k-hop pointer chasing: a task that needs several steps and is trainable on a CPU.

    rows = list(generate(500, seed=0, split="test"))
    rows[0]["question"]   # "d>b a>c b>a c>d ; 3 a"
    rows[0]["steps"]      # ["c", "d", "b"]; the answer is the last of them

A problem is a random cycle through all symbols, written as its edges in random order, then the
number of hops and the start. No symbol repeats before all have been visited, so every answer is
equally likely and can only be found by following the edges: chance is 1 / (num_symbols - 1).

Splits are disjoint for every pair of seeds: a hash of the problem, which ignores the order of its
edges, decides its split.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterator
from itertools import islice
from typing import TypedDict

from lm_eval_latentref.benchmarks.drawing import SPLIT_BUCKETS, check_request
from lm_eval_latentref.errors import LatentRefError

SYMBOLS = tuple(string.ascii_lowercase)


class Row(TypedDict):
    """One problem, in the fields of Coconut's data files."""

    question: str
    steps: list[str]
    answer: str


def generate(
    num: int,
    *,
    seed: int = 0,
    split: str = "train",
    num_symbols: int = 12,
    min_hops: int = 5,
    max_hops: int = 5,
    arrow: str = ">",
) -> Iterator[Row]:
    """Yields `num` problems; the first n are the same for every `num`.

    Args:
        num: how many, 0 or more.
        seed: any integer; different seeds give different problems.
        split: "train", "validation" or "test"; no problem is in two splits, whatever the seeds.
        num_symbols: the number of letters in the cycle, 3 to 26.
        min_hops: the fewest hops, at least 1.
        max_hops: the most hops, less than `num_symbols`.
        arrow: the text between the two symbols of an edge; ">" makes an edge one word.

    Raises:
        LatentRefError: a value is out of its range.
    """
    check_request(num, split)
    if not 3 <= num_symbols <= len(SYMBOLS):
        raise LatentRefError(f"num_symbols={num_symbols}: it must be 3 to {len(SYMBOLS)}")
    if not 1 <= min_hops <= max_hops < num_symbols:
        raise LatentRefError(
            f"min_hops={min_hops}, max_hops={max_hops}: they must be in order, at least 1 and less "
            f"than num_symbols={num_symbols}"
        )
    # A string seed goes through SHA-512, so it does not depend on Python's hash randomisation.
    rng = random.Random(f"hops {split} {seed}")
    return islice(_stream(rng, split, num_symbols, (min_hops, max_hops), arrow), num)


def _stream(
    rng: random.Random, split: str, num_symbols: int, hops: tuple[int, int], arrow: str
) -> Iterator[Row]:
    while True:
        cycle = rng.sample(SYMBOLS[:num_symbols], num_symbols)
        num_hops = rng.randint(*hops)
        if _bucket(cycle, num_hops) not in SPLIT_BUCKETS[split]:
            continue
        edges = [f"{a}{arrow}{b}" for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
        rng.shuffle(edges)
        path = cycle[1 : num_hops + 1]
        question = f"{' '.join(edges)} ; {num_hops} {cycle[0]}"
        yield Row(question=question, steps=path, answer=path[-1])


def _bucket(cycle: list[str], num_hops: int) -> int:
    # The cycle from its start and the number of hops determine the problem.
    digest = hashlib.sha256(f"{num_hops} {' '.join(cycle)}".encode()).digest()
    return digest[0] % 4


def candidates(question: str) -> list[str]:
    """All symbols of `question`, sorted."""
    return sorted({word[0] for word in question.split() if ">" in word})
