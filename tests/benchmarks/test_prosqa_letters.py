"""ProsQA in letters: the published problems can be solved from their letters."""

from __future__ import annotations

import itertools
import os
import re

import pytest

from lm_eval_latentref.benchmarks.generators import generate
from lm_eval_latentref.benchmarks.prosqa import generate as generate_words
from lm_eval_latentref.benchmarks.prosqa_letters import SYMBOLS, lettered
from lm_eval_latentref.benchmarks.published import DATA_VARIABLE
from lm_eval_latentref.benchmarks.splits import load_split
from lm_eval_latentref.errors import LatentRefError

QUESTION = re.compile(r"((?:[a-zAB]> [a-zAB] )+); ([a-zAB]) ([a-zAB]) ; ([a-zAB])")


def solve(row):
    """The reachable candidate, and whether the steps are a path to it."""
    match = QUESTION.fullmatch(row["question"])
    assert match, row["question"]
    edges = set(re.findall(r"(\w)> (\w)", match[1]))
    reached = {match[4]}
    while more := {down for up, down in edges if up in reached} - reached:
        reached |= more
    (answer,) = reached & {match[2], match[3]}
    path = all(hop in edges for hop in itertools.pairwise([match[4], *row["steps"]]))
    return answer, path and row["steps"][-1] == answer


@pytest.fixture(scope="module")
def in_words():
    if os.environ.get(DATA_VARIABLE):
        return load_split("prosqa", "test").rows
    return list(generate_words(200, seed=3, split="test"))


def test_a_solver_of_letters_finds_the_published_answer_and_steps(in_words):
    for words in in_words:
        row = lettered(words)
        assert solve(row) == (row["answer"], True)
        assert len(row["steps"]) == len(words["steps"])
        assert row["question"].count(">") == words["question"].count(". ")


def test_each_problem_draws_letters_of_its_own_and_the_same_ones_each_time(in_words):
    rows = [lettered(words) for words in in_words]
    assert rows == [lettered(words) for words in in_words]
    assert {row["answer"] for row in rows} == set(SYMBOLS)


def test_the_facts_and_the_offer_keep_the_order_of_the_question():
    row = lettered(
        {
            "question": "Every dumpus is a lempus. Tom is a dumpus. Bob is a impus. "
            "Is Tom a impus or lempus?",
            "steps": ["Tom is a dumpus.", "Every dumpus is a lempus."],
            "answer": "Tom is a lempus.",
        }
    )
    (dumpus, lempus, tom, _, bob, impus) = re.findall(r"[a-zAB](?=>| )", row["question"])[:6]
    assert row["question"] == (
        f"{dumpus}> {lempus} {tom}> {dumpus} {bob}> {impus} ; {impus} {lempus} ; {tom}"
    )
    assert row["steps"] == [dumpus, lempus]


def test_generated_problems_are_those_of_prosqa_in_the_same_order():
    options = {"min_nodes": 8, "max_nodes": 12, "min_hops": 2, "max_hops": 3}
    for sizes in ({}, options):
        rows = generate("prosqa_letters", 5, seed=1, split="validation", options=sizes)
        words = generate_words(5, seed=1, split="validation", **sizes)
        assert rows == [lettered(row) for row in words]


@pytest.mark.parametrize(
    "question", ["Who?", "Tom is a lempus. Is Tom a lempus?", "Tom likes Bob. Is Tom a b or c?"]
)
def test_another_wording_is_refused_in_one_line(question):
    with pytest.raises(LatentRefError, match="not a ProsQA question") as raised:
        lettered({"question": question, "steps": ["Tom is a lempus."], "answer": "x"})
    assert "\n" not in str(raised.value)
