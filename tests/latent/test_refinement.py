"""The refinements equal the paper's equations, for any numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.latent.refinement import contrastive_step, mix_residual

numbers = st.floats(-100, 100, width=32)
rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=8)
rates = st.floats(0, 1)
steps = st.floats(-50, 50)


def columns(values):
    return [torch.tensor([column]) for column in zip(*values, strict=True)]


@given(rows, rates)
def test_residual_is_the_convex_combination(values, rate):
    raw, previous, _ = columns(values)
    wanted = [[rate * p + (1 - rate) * r for r, p, _ in values]]
    torch.testing.assert_close(
        mix_residual(raw, previous, memory_rate=rate), torch.tensor(wanted), rtol=1e-4, atol=1e-4
    )


@given(rows)
def test_residual_keeps_all_or_nothing_at_the_ends(values):
    raw, previous, _ = columns(values)
    assert torch.equal(mix_residual(raw, previous, memory_rate=0.0), raw)
    assert torch.equal(mix_residual(raw, previous, memory_rate=1.0), previous)


@given(rows, steps)
def test_search_moves_from_weak_to_strong_by_two_over_d(values, eta):
    thought, good, bad = columns(values)
    wanted = [[h + eta * 2 / len(values) * (g - b) for h, g, b in values]]
    torch.testing.assert_close(
        contrastive_step(thought, good, bad, step_size=eta),
        torch.tensor(wanted),
        rtol=1e-3,
        atol=1e-2,
    )


@given(rows, steps)
def test_a_rows_update_does_not_depend_on_its_batch(values, eta):
    thought, good, bad = columns(values)
    alone = contrastive_step(thought, good, bad, step_size=eta)
    others = torch.ones_like(thought).expand(3, -1)
    batch = contrastive_step(
        torch.cat([others, thought]),
        torch.cat([2 * others, good]),
        torch.cat([-others, bad]),
        step_size=eta,
    )
    assert torch.equal(batch[-1:], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_is_float32_whatever_comes_in(dtype):
    rows_BD = torch.randn(2, 4, dtype=dtype)
    assert mix_residual(rows_BD, rows_BD, memory_rate=0.5).dtype == torch.float32
    assert contrastive_step(rows_BD, rows_BD, rows_BD, step_size=1.0).dtype == torch.float32
