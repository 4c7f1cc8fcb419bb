"""The generators `graph` and `arith`: answers by independent solvers, splits, statistics."""

from __future__ import annotations

import collections
import itertools
import math
import re

import pytest
from matrix import crossed

from lm_eval_latentref.benchmarks import arith, graph, prosqa
from lm_eval_latentref.benchmarks.generators import GENERATORS, generate
from lm_eval_latentref.errors import LatentRefError

GRAPH = re.compile(r"((?:[a-z]>[a-z] )+); ([a-z]) ([a-z]) ; ([a-z])")


def parse_graph(question):
    """The successors of each node, the two candidates, and the root in the question."""
    match = GRAPH.fullmatch(question)
    assert match, question
    below = collections.defaultdict(set)
    for word in match[1].split():
        up, down = word.split(">")
        below[up].add(down)
    return below, {match[2], match[3]}, match[4]


def layers(below, root):
    """The sets of nodes at each distance from `root`."""
    reached, layer = {root}, {root}
    while layer:
        yield layer
        layer = set().union(*(below[node] for node in layer)) - reached
        reached |= layer


def solve_graph(row):
    """Checks the row's steps and answer against its question; returns the number of hops."""
    below, candidates, root = parse_graph(row["question"])
    actual = [(hops, node) for hops, layer in enumerate(layers(below, root)) for node in layer]
    ((hops, answer),) = [(hops, node) for hops, node in actual if node in candidates]
    assert answer == row["answer"] == row["steps"][-1]
    assert len(row["steps"]) == hops
    assert all(b in below[a] for a, b in itertools.pairwise([root, *row["steps"]]))
    return hops


def solve_arith(question, modulus):
    """All results, computed without the generator's table of operations."""
    first, *operations = question.removesuffix(" =").split()
    results = [int(first)]
    for operation in operations:
        results.append(eval(f"({results[-1]}{operation}) % {modulus}"))
    return [str(result) for result in results[1:]]


def test_each_graph_question_has_the_answer_and_shortest_path_a_solver_finds():
    rows = generate("graph", 1000, seed=5, split="test", options={})
    hops = collections.Counter(solve_graph(row) for row in rows)
    assert set(hops) == {3, 4}
    assert hops[4] < 30
    for row in rows:
        assert sorted(row["candidates"]) == sorted(parse_graph(row["question"])[1])


def test_no_cue_but_the_path_gives_a_graphs_answer_away():
    """Both candidates are at the same distance; each position is right half the time."""
    rows = generate("graph", 1000, seed=1, split="train", options={})
    first = 0
    for row in rows:
        below, candidates, root = parse_graph(row["question"])
        ends = set().union(*below.values())
        (other,) = {node for node in below if below[node] and node not in ends} - {root}
        reached = [
            (hops, node) for hops, layer in enumerate(layers(below, other)) for node in layer
        ]
        ((hops, rival),) = [(hops, node) for hops, node in reached if node in candidates]
        assert rival != row["answer"]
        assert hops == len(row["steps"])
        first += row["candidates"][0] == row["answer"]
    assert abs(first - 500) < 4 * math.sqrt(250)


def test_a_graph_has_the_nodes_edges_and_letters_asked_for():
    options = {"nodes": 18, "extra": 3, "min_hops": 2, "max_hops": 3, "symbols": 20}
    rows = generate("graph", 300, seed=0, split="train", options=options)
    assert {solve_graph(row) for row in rows} == {2, 3}
    letters = set()
    for row in rows:
        edges = row["question"].partition(" ; ")[0].split()
        assert len(edges) == len(set(edges)) == 18 - 2 + 3
        letters |= set("".join(edges)) - {">"}
    assert letters == set("abcdefghijklmnopqrst")


def test_each_arith_problem_has_the_results_that_plain_arithmetic_gives():
    rows = generate("arith", 500, seed=2, split="test", options={"min_steps": 2, "max_steps": 5})
    assert {len(row["steps"]) for row in rows} == {2, 3, 4, 5}
    for row in rows:
        assert row["steps"] == solve_arith(row["question"], 11)
        assert row["answer"] == row["steps"][-1]
        assert row["candidates"] == [str(number) for number in range(11)]
    answers = collections.Counter(
        row["answer"] for row in generate("arith", 5500, seed=0, split="test", options={})
    )
    assert all(abs(number - 500) < 4 * math.sqrt(500) for number in answers.values())


@pytest.mark.parametrize("name", crossed(["arith", "graph"], every=2))
def test_splits_are_disjoint_whatever_the_seeds_and_no_problem_comes_twice(name):
    def identities(split, seed):
        rows = generate(name, 2000, seed=seed, split=split, options={})
        questions = [row["question"] for row in rows]
        if name == "graph":
            questions = [" ".join(sorted(text.split(" ; ")[0].split())) for text in questions]
        assert len(set(questions)) == 2000
        return set(questions)

    train = identities("train", 0) | identities("train", 1)
    test, validation = identities("test", 0), identities("validation", 7)
    assert not train & test
    assert not train & validation
    assert not test & validation
    assert len(train) > 3500


@pytest.mark.parametrize("name", GENERATORS)
def test_the_first_problems_are_the_same_whatever_their_number(name):
    few = generate(name, 5, seed=3, split="test", options={})
    assert generate(name, 20, seed=3, split="test", options={})[:5] == few
    assert generate(name, 5, seed=4, split="test", options={}) != few


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("graph", {"nodes": 17}, "nodes=17, symbols=16"),
        ("graph", {"nodes": 1}, "nodes=1"),
        ("graph", {"min_hops": 5}, "min_hops=5, max_hops=4"),
        ("graph", {"extra": -1}, "extra=-1"),
        ("graph", {"min_hops": 9, "max_hops": 9}, "only 0 problems of train"),
        ("arith", {"modulus": 1}, "modulus=1"),
        ("arith", {"modulus": 10**30}, "modulus=10*: it must be from 2 to 1000"),
        ("arith", {"min_steps": 0}, "min_steps=0"),
        ("arith", {"max_steps": 10**6}, "max_steps=1000000: they must be in order, from 1 to 1000"),
        ("arith", {"modulus": 3, "min_steps": 1, "max_steps": 1}, "a smaller number"),
        ("graph", {"node": 3}, "'node' is not an option of graph; they are extra"),
        ("sums", {}, "no generated task 'sums'"),
    ],
)
def test_options_that_allow_no_problem_are_refused(name, options, message):
    with pytest.raises(LatentRefError, match=message):
        generate(name, 100, seed=0, split="train", options=options)


def test_a_generator_ends_when_all_names_of_its_problems_are_used(monkeypatch):
    """Two facts, each about one of two people and one of four concepts, give 12 questions."""
    monkeypatch.setattr(prosqa, "PEOPLE", prosqa.PEOPLE[:2])
    monkeypatch.setattr(prosqa, "CONCEPTS", prosqa.CONCEPTS[:4])
    options = {"min_nodes": 4, "max_nodes": 4, "min_hops": 1, "max_hops": 1}
    for name in ("prosqa_generated", "prosqa_letters"):
        with pytest.raises(LatentRefError, match=r"hardly more than [0-9]+ problems of"):
            generate(name, 100, seed=0, split="test", options=options)


def test_a_huge_number_of_hops_costs_nothing():
    options = {"min_hops": 1, "max_hops": 10**9}
    expected = generate("graph", 5, seed=0, split="test", options={"min_hops": 1, "max_hops": 13})
    assert generate("graph", 5, seed=0, split="test", options=options) == expected


@pytest.mark.parametrize("module", [graph, arith])
def test_an_unknown_split_and_a_negative_number_are_refused(module):
    with pytest.raises(LatentRefError, match="split 'dev'"):
        module.generate(1, split="dev")
    with pytest.raises(LatentRefError, match="number of problems is -1"):
        module.generate(-1)
