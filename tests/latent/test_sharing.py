"""Thinking under many settings at once gives what thinking under each gives, for fewer forwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import crossed
from thought_cases import CONTEXTS, CONTINUATIONS, MARKER_IDS, assert_same_scores, models
from tiny import HIDDEN_SIZE

from lm_eval_latentref.evaluation.settings import Grid
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


def test_what_no_setting_changes_is_done_once():
    rates, sizes, most = (0.2, 0.4, 0.6), (0.5, 1.0), 4
    grid = Grid(latent_steps=(2, most), memory_rates=rates, step_sizes=sizes)
    actual = count(configs_of(grid), networks("llama"))
    num_rates, num_sizes = len(rates) + 1, len(sizes) + 1
    # The context; after the first thought once a step size; then once a pair. Fewer thoughts: free.
    backbone = 1 + num_sizes * (1 + num_rates * (most - 2))
    # The context with the first thought; then once for each pair and thought.
    reference = 1 + len(sizes) * num_rates * (most - 1)
    assert actual == [backbone, reference, reference]


def test_memory_rates_alone_ask_no_reference():
    grid = Grid(latent_steps=(3,), memory_rates=(0.2, 0.4))
    assert count(configs_of(grid), networks("llama"))[1:] == [0, 0]
