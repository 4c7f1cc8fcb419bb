"""Every kind of thought equals the naive loop, whatever the architecture and the refinement."""

from __future__ import annotations

import dataclasses

import pytest
from kind_cases import CASES, FAMILIES, assert_equal, ours, wanted
from matrix import crossed


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize(("family", "name"), crossed(FAMILIES, CASES, every=4))
def test_each_kind_equals_the_naive_loop(family, name, refined):
    case = CASES[name]
    if refined and not case.refinement:
        pytest.skip("it is never refined")
    actual = ours(family, case.options, batch_size=3, **(case.refinement if refined else {}))
    assert_equal(actual, wanted(family, case, refined=refined))


MAPPED = ["projected", "realigned by ridge", "gaussian mean"]


@pytest.mark.parametrize(("family", "name"), crossed(["gpt2", "llama"], MAPPED, every=2))
def test_a_gradient_through_the_references_goes_through_the_map_as_well(family, name):
    case = CASES[name]
    # Gradients through the references amplify rounding more.
    case = dataclasses.replace(case, refinement={**case.refinement, "search_step_size": 3.0})
    actual = ours(family, case.options, search_gradient="through", **case.refinement)
    expected = wanted(family, case, refined=True, gradient="through")
    assert_equal(actual, expected)
    detached = wanted(family, case, refined=True)
    assert abs(detached[0][0][0] - expected[0][0][0]) > 1e-3, "both gradients are alike here"
