"""The curriculum equals its published description: inputs, labels and batches."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.training.curriculum import (
    Curriculum,
    Problem,
    Row,
    cot_row,
    epoch_batches,
    micro_batches,
    no_cot_row,
    share,
)

START, END, LATENT, NOT_LABELLED = -1, -2, -3, -100

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple)
problems = st.builds(Problem, tokens, st.lists(tokens, max_size=5).map(tuple), tokens)
curricula = st.builds(
    Curriculum,
    c_thought=st.integers(1, 3),
    max_latent_stage=st.integers(0, 4),
    pad_latent_to_max=st.booleans(),
)
rows = st.builds(Row, tokens, st.integers(0, 3), tokens)


def as_published(problem, stage, curriculum):
    """Input ids and labels, written down from the description of Coconut's data preparation."""
    if stage > curriculum.max_latent_stage:
        steps, num_latent = [], curriculum.max_latent_stage
        if not curriculum.pad_latent_to_max:
            num_latent = min(len(problem.steps), curriculum.max_latent_stage)
    else:
        steps, num_latent = problem.steps[stage:], stage
    before = [*problem.question, START, *[LATENT] * (num_latent * curriculum.c_thought), END]
    text = [token for step in steps for token in step] + list(problem.answer)
    return before + text, [NOT_LABELLED] * len(before) + text


@given(problem=problems, stage=st.integers(0, 6), curriculum=curricula)
def test_a_row_has_the_ids_and_labels_of_coconut(problem, stage, curriculum):
    row = curriculum.row(problem, stage)
    before = [*row.context, START, *[LATENT] * row.num_thoughts, END]
    ids, labels = as_published(problem, stage, curriculum)
    assert [*before, *row.target] == ids
    assert [NOT_LABELLED] * len(before) + list(row.target) == labels


@given(problem=problems, curriculum=curricula)
def test_stage_0_is_cot_training(problem, curriculum):
    assert curriculum.row(problem, 0) == cot_row(problem)


@given(problem=problems, curriculum=curricula)
def test_the_final_stage_has_only_the_answer_as_no_cot_does(problem, curriculum):
    row = curriculum.row(problem, curriculum.final_stage)
    assert row.target == no_cot_row(problem).target == problem.answer
    assert no_cot_row(problem).num_thoughts == 0


@given(curriculum=curricula, stage=st.integers(0, 6), problem=problems)
def test_evaluation_thinks_as_much_as_training_padded_to_the_maximum(curriculum, stage, problem):
    if stage <= curriculum.max_latent_stage or curriculum.pad_latent_to_max:
        assert curriculum.latent_steps(stage) == curriculum.row(problem, stage).num_thoughts


def test_stages_are_drawn_uniformly_with_the_given_probability():
    problem = Problem((1,), ((2,), (3,)), (4,))
    rng = random.Random(0)
    drawn = [Curriculum(uniform_prob=0.3).draw_stage(problem, 7, rng) for _ in range(6000)]
    shares = {stage: drawn.count(stage) / len(drawn) for stage in sorted(set(drawn))}
    assert shares.keys() == {0, 1, 2, 7}
    assert shares[7] == pytest.approx(0.7, abs=0.02)
    assert all(shares[stage] == pytest.approx(0.1, abs=0.02) for stage in (0, 1, 2))
    assert {Curriculum().draw_stage(problem, 7, rng) for _ in range(50)} == {7}


@given(all_rows=st.lists(rows, max_size=40), size=st.integers(1, 7), seed=st.integers(0, 5))
def test_an_epoch_has_each_row_once_in_batches_of_equal_numbers_of_thoughts(all_rows, size, seed):
    batches = epoch_batches(all_rows, size, random.Random(seed))
    assert sorted(map(repr, itertools.chain(*batches))) == sorted(map(repr, all_rows))
    assert len(batches) == -(-len(all_rows) // size)
    assert all(1 <= len(batch) <= size for batch in batches)
    counts = {row.num_thoughts for row in all_rows}
    mixed = [batch for batch in batches if len({row.num_thoughts for row in batch}) > 1]
    assert sum(map(len, mixed)) <= len(counts) * (size - 1)
    assert batches == epoch_batches(all_rows, size, random.Random(seed))


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_get_about_the_same_number_of_tokens(num_processes):
    batch = [Row((0,) * length, 0, (0,)) for length in range(1, 17)]
    shares = [share(batch, rank, num_processes) for rank in range(num_processes)]
    assert len({sum(row.num_columns for row in rows) for rows in shares}) == 1


@given(batch=st.lists(rows, max_size=20), num_processes=st.integers(1, 4), size=st.integers(1, 5))
def test_shares_and_micro_batches_are_a_partition_of_the_batch(batch, num_processes, size):
    groups = [
        group
        for rank in range(num_processes)
        for group in micro_batches(share(batch, rank, num_processes), size)
    ]
    assert sorted(map(repr, itertools.chain(*groups))) == sorted(map(repr, batch))
    assert all(len(group) <= size for group in groups)
    assert all(len({row.num_thoughts for row in group}) == 1 for group in groups)
