"""Thinking under many settings at once gives what thinking under each gives, for fewer forwards."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import crossed
from thought_cases import CONTEXTS, CONTINUATIONS, MARKER_IDS, assert_same_scores, models
from tiny import HIDDEN_SIZE

from lm_eval_latentref.evaluation.settings import Grid
from lm_eval_latentref.latent import sharing, thoughts
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.sharing import think_under
from lm_eval_latentref.latent.thoughts import Context, Markers, References, think

MARKERS = Markers(MARKER_IDS[:1], MARKER_IDS[1:])
GRID = Grid(
    latent_steps=(0, 1, 2, 4), memory_rates=(0.3, 1.0), step_sizes=(1.0, -0.5), search_steps=(1, 2)
)


def configs_of(grid, gradient="detached"):
    return [s.config(HIDDEN_SIZE, search_gradient=gradient) for s in grid.settings()]


def networks(family):
    backbone, strong, weak = map(Network, models(family))
    return {"backbone": backbone, "references": References(strong, weak)}


def forwards(made):
    references = made["references"]
    return [n.num_forwards for n in (made["backbone"], references.strong, references.weak)]


def results(thoughts):
    return score(thoughts, CONTINUATIONS, max_rows=4)


@torch.no_grad()
def under(configs, made, markers=MARKERS):
    context = Context.pad(CONTEXTS)
    return {
        number: (results(thoughts), thoughts.thoughts_BTD)
        for number, ((_, thoughts),) in think_under(context, configs, markers=markers, **made)
    }


@torch.no_grad()
def separately(config, made, markers=MARKERS):
    thoughts = think(Context.pad(CONTEXTS), config=config, markers=markers, **made)
    return results(thoughts), thoughts.thoughts_BTD


def assert_equal(actual, configs, made, markers=MARKERS):
    assert sorted(actual) == list(range(len(configs)))
    for number, config in enumerate(configs):
        scores, thoughts_BTD = separately(config, made, markers)
        assert_same_scores(actual[number][0], scores)
        # Refinement amplifies float32's noise from thought to thought.
        torch.testing.assert_close(actual[number][1], thoughts_BTD, rtol=2e-3, atol=2e-3)


SHARED = ["gpt2", "mistral", "gemma3", "llama"]


@pytest.mark.parametrize(("family", "gradient"), crossed(SHARED, ["detached", "through"], every=4))
def test_sharing_changes_no_thought_and_no_score(family, gradient):
    # Gradients through the references amplify more.
    sizes = (0.2, -0.1) if gradient == "through" else GRID.step_sizes
    grid = dataclasses.replace(GRID, step_sizes=sizes)
    configs, made = configs_of(grid, gradient), networks(family)
    assert_equal(under(configs, made), configs, made)


def test_sharing_changes_nothing_without_markers():
    configs, made = configs_of(GRID), networks("llama")
    assert_equal(under(configs, made, None), configs, made, None)


def test_sharing_changes_nothing_in_half_precision():
    configs = configs_of(Grid(latent_steps=(3,), memory_rates=(0.3,), step_sizes=(2.0,)))
    backbone, strong, weak = (Network(model.bfloat16()) for model in models("llama"))
    made = {"backbone": backbone, "references": References(strong, weak)}
    actual = under(configs, made)
    for number, config in enumerate(configs):
        wanted_BTD = separately(config, made)[1]
        torch.testing.assert_close(actual[number][1], wanted_BTD, rtol=0.05, atol=0.05)


@settings(max_examples=10)
@given(
    steps=st.sets(st.integers(0, 3), min_size=1),
    rates=st.sets(st.sampled_from([0.0, 0.4, 1.0])),
    sizes=st.sets(st.sampled_from([0.0, 1.5, -2.0])),
)
def test_any_grid_comes_out_as_setting_by_setting(steps, rates, sizes):
    grid = Grid(latent_steps=tuple(steps), memory_rates=(0.0, *rates), step_sizes=(0.0, *sizes))
    configs, made = configs_of(grid), networks("gpt2")
    assert_equal(under(configs, made), configs, made)


@torch.no_grad()
def count(configs, made):
    """Forwards of each model for the thoughts alone, continuations not counted."""
    before = forwards(made)
    for _ in think_under(Context.pad(CONTEXTS), configs, markers=MARKERS, **made):
        pass
    return [now - then for now, then in zip(forwards(made), before, strict=True)]


@pytest.mark.parametrize(("family", "abreast"), [("llama", True), ("mistral", False)])
def test_what_no_setting_changes_is_done_once(family, abreast):
    rates, sizes, most = (0.2, 0.4, 0.6), (0.5, 1.0), 4
    grid = Grid(latent_steps=(2, most), memory_rates=rates, step_sizes=sizes)
    actual = count(configs_of(grid), networks(family))
    num_sizes = len(sizes) + 1
    num_branches = 1 if abreast else len(rates) + 1
    # The context; after the first thought once a step size; then once a branch. Fewer thoughts:
    # free.
    backbone = 1 + num_sizes * (1 + num_branches * (most - 2))
    # The context with the first thought; then once for each branch and thought.
    reference = 1 + len(sizes) * num_branches * (most - 1)
    assert actual == [backbone, reference, reference]


RATES = Grid(latent_steps=(4,), memory_rates=(0.2, 0.5, 0.9), step_sizes=(1.0,))


@pytest.mark.parametrize("most", [4, 8, 128])
def test_as_many_settings_as_allowed_are_read_side_by_side_with_the_same_thoughts(
    most, monkeypatch
):
    monkeypatch.setattr(sharing, "COLUMNS_ABREAST", most)
    configs, made = configs_of(RATES), networks("llama")
    assert_equal(under(configs, made), configs, made)
    num_forwards = 1 + 2 * (1 + math.ceil(len(configs) / 2 / (most // 4)) * 2)
    assert count(configs, made)[0] == num_forwards


@torch.no_grad()
def test_settings_side_by_side_think_alike_in_every_batch():
    configs, made = configs_of(RATES), networks("llama")
    together = under(configs, made)
    for row, context in enumerate(CONTEXTS):
        for number, ((_, alone),) in think_under(
            Context.pad([context]), configs, markers=MARKERS, **made
        ):
            (scores,) = score(alone, [CONTINUATIONS[row]], max_rows=1)
            assert_same_scores([together[number][0][row]], [scores])


def test_the_comparison_shows_rates_that_are_swapped(monkeypatch):
    mix = thoughts._mixed_apart

    def mutant(raw_BD, previous_BD, memory_rates):
        return mix(raw_BD, previous_BD, memory_rates[::-1])

    monkeypatch.setattr(thoughts, "_mixed_apart", mutant)
    configs, made = configs_of(RATES), networks("llama")
    with pytest.raises(AssertionError):
        assert_equal(under(configs, made), configs, made)


@torch.no_grad()
def test_a_setting_that_overflows_leaves_those_beside_it_as_they_are():
    made, finite = networks("llama"), []
    configs = [
        RefinementConfig(latent_steps=steps, memory_rate=rate, search_step_size=1.5e39)
        for steps in (2, 5)
        for rate in (0.0, 0.5)
    ]
    context = Context.pad(CONTEXTS)
    for number, ((_, actual),) in think_under(context, configs, markers=MARKERS, **made):
        wanted = think(context, config=configs[number], markers=MARKERS, **made)
        assert actual.finite_BT3.equal(wanted.finite_BT3)
        finite.append(bool(wanted.finite_BT3.all()))
    assert sorted(finite) == [False, False, True, True]


def test_memory_rates_alone_ask_no_reference():
    grid = Grid(latent_steps=(3,), memory_rates=(0.2, 0.4))
    assert count(configs_of(grid), networks("llama"))[1:] == [0, 0]
