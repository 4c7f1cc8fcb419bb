"""Generated ProsQA problems: well posed, repeatable, disjoint, and like the published problems."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.benchmarks.prosqa import (
    CONCEPTS,
    KNOWN_FINGERPRINTS,
    PEOPLE,
    SPLIT_BUCKETS,
    fingerprint,
    generate,
)
from lm_eval_latentref.benchmarks.published import DATA_VARIABLE
from lm_eval_latentref.benchmarks.splits import load_split
from lm_eval_latentref.checkpoints.questions import normalise_question
from lm_eval_latentref.errors import LatentRefError

FIELDS = ["question", "answer", "steps", "idx_to_symbol", "edges", "root", "target", "neg_target"]

# Mean and tolerance (about four standard errors of 1000 generated problems, plus what the fit
# leaves) of each statistic over the real 800 validation and test questions.
REAL_STATISTICS = {
    "hops": (3.77, 0.12),
    "nodes": (22.81, 0.4),
    "edges": (35.99, 1.2),
    "words": (179.2, 6.0),
    "people": (2.56, 0.12),
    "root": (0.636, 0.08),
    "right answer offered first": (0.505, 0.08),
    "target before neg_target": (0.40, 0.08),
    "steps to neg_target": (2.11, 0.2),
    "facts about the person asked": (2.94, 0.4),
    "nodes only one rival reaches": (18.86, 0.8),
    "leaves": (7.37, 0.4),
}


@pytest.fixture(scope="module")
def rows():
    return list(generate(1000, seed=0, split="test"))


@pytest.fixture(scope="module")
def real_data():
    if not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"{DATA_VARIABLE} is not set")


def children_of(row):
    children = {node: [] for node in range(len(row["idx_to_symbol"]))}
    for up, node in row["edges"]:
        children[up].append(node)
    return children


def distances(row, start):
    """Breadth-first distances, level by level, unlike the generator's algorithm."""
    children, level, actual = children_of(row), {start}, {}
    while level:
        actual |= dict.fromkeys(level, len(set(actual.values())))
        level = {child for node in level for child in children[node]} - actual.keys()
    return actual


def fact(row, up, node):
    symbols = row["idx_to_symbol"]
    subject = symbols[up] if symbols[up] in PEOPLE else f"Every {symbols[up]}"
    return f"{subject} is a {symbols[node]}."


def statistics_of(rows):
    values = {name: [] for name in REAL_STATISTICS}
    for row in rows:
        reached = [set(distances(row, rival)) for rival in (0, 1)]
        offered = row["question"].rsplit(" a ", 1)[1].rstrip("?").split(" or ")
        first = {
            "hops": len(row["steps"]),
            "nodes": len(row["idx_to_symbol"]),
            "edges": len(row["edges"]),
            "words": len(row["question"].split()),
            "people": sum(symbol in PEOPLE for symbol in row["idx_to_symbol"]),
            "root": row["root"],
            "right answer offered first": offered[0] == row["idx_to_symbol"][row["target"]],
            "target before neg_target": row["target"] < row["neg_target"],
            "steps to neg_target": distances(row, 1 - row["root"])[row["neg_target"]],
            "facts about the person asked": len(children_of(row)[row["root"]]),
            "nodes only one rival reaches": len(reached[0] ^ reached[1]) - 2,
            "leaves": sum(not below for below in children_of(row).values()),
        }
        for name, value in first.items():
            values[name].append(value)
    return {name: statistics.mean(of_all) for name, of_all in values.items()}


def test_only_the_right_answer_is_reachable(rows):
    for row in rows:
        reached = distances(row, row["root"])
        assert reached[row["target"]] == len(row["steps"])
        assert row["neg_target"] not in reached


def test_the_steps_are_a_path_of_stated_facts_to_the_answer(rows):
    for row in rows:
        symbols = row["idx_to_symbol"]
        assert row["steps"][0].split()[0] == symbols[row["root"]]
        for step, following in zip(row["steps"], row["steps"][1:], strict=False):
            assert step.split()[-1].rstrip(".") == following.split()[1]
        assert row["steps"][-1].endswith(f" is a {symbols[row['target']]}.")
        assert all(f"{step} " in row["question"] for step in row["steps"])
        assert row["answer"] == f"{symbols[row['root']]} is a {symbols[row['target']]}."


def test_the_question_states_each_edge_once_and_offers_both_answers(rows):
    for row in rows:
        *facts, question = row["question"].replace(". ", ".\n").split("\n")
        assert sorted(facts) == sorted(fact(row, *edge) for edge in row["edges"])
        symbols = row["idx_to_symbol"]
        offered = [symbols[row["target"]], symbols[row["neg_target"]]]
        person = symbols[row["root"]]
        assert question in {
            f"Is {person} a {' or '.join(pair)}?" for pair in (offered, offered[::-1])
        }


def test_rows_have_the_published_fields_and_vocabulary(rows):
    words = Counter()
    for row in rows:
        assert list(row) == FIELDS
        words.update(row["question"].replace(".", " ").replace("?", " ").split())
        assert len(set(row["idx_to_symbol"])) == len(row["idx_to_symbol"])
    assert set(words) == {*PEOPLE, *CONCEPTS, "Every", "Is", "is", "a", "or"}
    assert len(words) == 60


def test_people_are_exactly_the_nodes_without_parents(rows):
    for row in rows:
        parentless = set(range(len(row["idx_to_symbol"]))) - {node for _, node in row["edges"]}
        assert {row["idx_to_symbol"][node] for node in parentless} == {
            symbol for symbol in row["idx_to_symbol"] if symbol in PEOPLE
        }
        assert {0, 1} <= parentless
        assert row["root"] in (0, 1)


def test_statistics_are_those_of_the_real_questions(rows):
    generated = statistics_of(rows)
    off = {
        name: (generated[name], real)
        for name, (real, tolerance) in REAL_STATISTICS.items()
        if abs(generated[name] - real) > tolerance
    }
    assert not off


def test_hops_are_distributed_as_in_the_real_test_split(rows):
    shares = Counter(len(row["steps"]) for row in rows)
    real = {3: 202, 4: 217, 5: 69, 6: 12}
    assert set(shares) == set(real)
    # Chi-square with 3 degrees of freedom: 16.3 is passed once in a thousand seeds.
    assert sum((shares[h] - 2 * n) ** 2 / (2 * n) for h, n in real.items()) < 16.3


def test_recorded_statistics_are_those_of_the_real_files(real_data):
    real = load_split("prosqa", "dev").rows + load_split("prosqa", "test").rows
    measured = statistics_of(real)
    for name, (recorded, _) in REAL_STATISTICS.items():
        assert measured[name] == pytest.approx(recorded, rel=0.01), name


def test_the_same_seed_gives_the_same_problems_everywhere():
    text = "\n".join(json.dumps(row) for row in generate(20, seed=7, split="train"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "988b342ff43e394f"


def test_problems_have_the_nodes_and_steps_asked_for():
    sizes = {"min_nodes": 6, "max_nodes": 11, "min_hops": 2, "max_hops": 3}
    rows = list(generate(300, seed=0, split="train", **sizes))
    assert {len(row["steps"]) for row in rows} == {2, 3}
    # A node without edges is left out, so there may be fewer.
    assert max(len(row["idx_to_symbol"]) for row in rows) == 11
    assert min(len(row["idx_to_symbol"]) for row in rows) <= 6
    for row in rows:
        reached = distances(row, row["root"])
        assert reached[row["target"]] == len(row["steps"])
        assert row["neg_target"] not in reached


@given(seed=st.integers(-5, 10**12), split=st.sampled_from(list(SPLIT_BUCKETS)))
def test_a_smaller_number_gives_the_first_of_a_larger(seed, split):
    assert list(generate(2, seed=seed, split=split)) == list(
        islice(generate(10**9, seed=seed, split=split), 2)
    )


def test_splits_and_seeds_share_no_problem(rows):
    drawn = [
        fingerprint(row["question"])
        for split in SPLIT_BUCKETS
        for seed in (1, 2)
        for row in generate(300, seed=seed, split=split)
    ] + [fingerprint(row["question"]) for row in rows]
    assert len(set(drawn)) == len(drawn)


@given(seed=st.integers(0, 10**6), split=st.sampled_from(list(SPLIT_BUCKETS)))
def test_the_split_is_decided_by_the_facts_alone(seed, split):
    (row,) = generate(1, seed=seed, split=split)
    *facts, question = row["question"].replace(". ", ".\n").split("\n")
    reworded = " ".join([*reversed(facts), question])
    assert int(fingerprint(reworded), 16) % 4 in SPLIT_BUCKETS[split]


def test_no_generated_problem_is_a_real_one(rows, real_data):
    real = load_split("prosqa", "dev").rows + load_split("prosqa", "test").rows
    assert {fingerprint(row["question"]) for row in real} == KNOWN_FINGERPRINTS
    known = {normalise_question(row["question"]) for row in real}
    assert not known & {normalise_question(row["question"]) for row in rows}


def test_a_known_fingerprint_is_never_drawn(monkeypatch):
    first, second = generate(2, seed=3, split="test")
    barred = frozenset({fingerprint(first["question"])})
    monkeypatch.setattr("lm_eval_latentref.benchmarks.prosqa.KNOWN_FINGERPRINTS", barred)
    (other,) = generate(1, seed=3, split="test")
    assert other["question"] not in (first["question"], second["question"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": -1}, "-1"),
        ({"split": "dev"}, "'dev'"),
        ({"min_nodes": 5}, "give both or neither"),
        ({"min_nodes": 9, "max_nodes": 8}, "min_nodes=9, max_nodes=8"),
        ({"min_nodes": 9, "max_nodes": 29}, "from 4 to 28"),
        ({"min_hops": 4, "max_hops": 3}, "min_hops=4, max_hops=3"),
        ({"max_hops": 7}, "from 1 to 6"),
        ({"min_nodes": 4, "max_nodes": 5, "min_hops": 6}, "no problem of 6 steps"),
    ],
)
def test_what_cannot_be_generated_is_refused(options, message):
    with pytest.raises(LatentRefError, match=message):
        list(generate(**{"num": 1, "split": "test", **options}))
