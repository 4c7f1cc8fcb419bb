"""The generated k-hop task: well posed, seeded, its splits disjoint."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.benchmarks.hops import SPLIT_BUCKETS, generate
from lm_eval_latentref.errors import LatentRefError


def facts(row):
    """A problem without the order of its edges."""
    edges, asked = row["question"].split(" ; ")
    return frozenset(edges.split()), asked


@given(
    seed=st.integers(),
    split=st.sampled_from(sorted(SPLIT_BUCKETS)),
    num_symbols=st.integers(3, 26),
    data=st.data(),
)
def test_following_the_edges_gives_the_steps_and_the_answer(seed, split, num_symbols, data):
    min_hops = data.draw(st.integers(1, num_symbols - 1))
    max_hops = data.draw(st.integers(min_hops, num_symbols - 1))
    sizes = {"num_symbols": num_symbols, "min_hops": min_hops, "max_hops": max_hops}
    for row in generate(3, seed=seed, split=split, **sizes):
        edges, asked = facts(row)
        after = dict(edge.split(">") for edge in edges)
        num_hops, symbol = asked.split()
        assert len(after) == num_symbols
        assert min_hops <= int(num_hops) <= max_hops
        walked = []
        for _ in range(int(num_hops)):
            symbol = after[symbol]
            walked.append(symbol)
        assert row["steps"] == walked
        assert row["answer"] == walked[-1]


def test_the_same_seed_gives_the_same_problems_however_many_are_asked_for():
    assert list(generate(5, seed=3)) == list(islice(generate(50, seed=3), 5))
    assert list(generate(5, seed=3)) != list(generate(5, seed=4))


def test_splits_are_disjoint_whatever_the_seeds_and_the_order_of_edges():
    # A size so small that all problems come up.
    size = {"num_symbols": 4, "min_hops": 1, "max_hops": 3}
    seen = {
        split: {
            facts(row) for seed in range(3) for row in generate(200, seed=seed, split=split, **size)
        }
        for split in SPLIT_BUCKETS
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_every_answer_is_about_equally_likely():
    answers = [row["answer"] for row in generate(2600, num_symbols=13, min_hops=3, max_hops=3)]
    counts = {answer: answers.count(answer) for answer in set(answers)}
    assert len(counts) == 13
    assert all(130 < count < 270 for count in counts.values())


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"num": -1}, "-1"),
        ({"num": 1, "split": "dev"}, "'dev'"),
        ({"num": 1, "num_symbols": 27}, "num_symbols=27"),
        ({"num": 1, "num_symbols": 5, "max_hops": 5}, "max_hops=5"),
        ({"num": 1, "min_hops": 0, "max_hops": 2}, "min_hops=0"),
    ],
)
def test_a_size_out_of_range_is_named(given_, named):
    with pytest.raises(LatentRefError, match=named):
        generate(**given_)
