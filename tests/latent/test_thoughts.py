"""The cached, batched thought loop equals the oracle, for all architectures and batches."""

from __future__ import annotations

import dataclasses
import functools

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import crossed
from thought_cases import (
    BOTH,
    CONFIGS,
    CONTEXTS,
    MARKER_IDS,
    PLAIN,
    STEP,
    assert_same_scores,
    expected,
    models,
    run,
)
from tiny import FAMILIES, HIDDEN_SIZE, random_ids, tiny_model

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.refinement import contrastive_loss, contrastive_step
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.thoughts import Context, Markers, References, think


@pytest.mark.parametrize(("name", "markers"), crossed(CONFIGS, [True, False], every=2))
def test_every_setting_equals_the_oracle(name, markers):
    scores, _ = run("llama", CONFIGS[name], markers=markers)
    assert_same_scores(scores, expected("llama", CONFIGS[name], markers=markers))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *crossed(FAMILIES, ["both", "through"], every=2),
        *((family, "no thought") for family in FAMILIES),
    ],
)
def test_every_family_equals_the_oracle(family, name):
    scores, _ = run(family, CONFIGS[name], markers=True)
    assert_same_scores(scores, expected(family, CONFIGS[name], markers=True))


@functools.cache
def run_alone(family, config):
    return run(family, config, markers=True, batch_size=1)


@settings(max_examples=12)
@given(
    order=st.permutations(range(len(CONTEXTS))),
    batch_size=st.integers(1, len(CONTEXTS)),
    max_rows=st.integers(1, 8),
    family=st.sampled_from(["gpt2", "mistral"]),
    gradient=st.sampled_from(["detached", "through"]),
)
def test_batch_padding_and_order_change_nothing(order, batch_size, max_rows, family, gradient):
    config = dataclasses.replace(BOTH, search_gradient=gradient)
    alone, thoughts_alone = run_alone(family, config)
    actual, thoughts = run(
        family, config, markers=True, batch_size=batch_size, order=order, max_rows=max_rows
    )
    assert_same_scores(actual, alone)
    torch.testing.assert_close(
        torch.stack(thoughts), torch.stack(thoughts_alone), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("family", "name"), crossed(FAMILIES, ["both", "through", "no thought"], every=3)
)
def test_thinking_in_parts_changes_nothing(family, name):
    config, longest = CONFIGS[name], max(map(len, CONTEXTS))
    whole, _ = run(family, config, markers=True)
    for rows in (1, 2):
        actual, _ = run(family, config, markers=True, max_columns=rows * longest)
        assert_same_scores(actual, whole)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 60))
def test_parts_keep_every_row_in_order_and_no_more_columns_than_asked_for(num, length, columns):
    context = Context.pad([random_ids(1 + n % length, seed=n) for n in range(num)])
    parts = context.in_parts(columns)
    assert torch.equal(torch.cat([part.ids_BC for part in parts]), context.ids_BC)
    if context.mask_BC is not None:
        assert torch.equal(torch.cat([part.mask_BC for part in parts]), context.mask_BC)
    sizes = [len(part.ids_BC) for part in parts]
    assert max(sizes) == 1 or max(sizes) * context.ids_BC.shape[1] <= columns
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_choices_side_by_side_in_one_row_do_not_see_each_other(family, attention, monkeypatch):
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    choices = [[(5, 6, 7), (5, 6), (8, 9, 10, 11, 12), (8, 9, 10, 11, 13)], [(6, 7, 8), (9,)]]

    def scores(network):
        context = Context.pad(CONTEXTS[:2])
        with torch.no_grad():
            thoughts = think(context, backbone=network, references=None, config=PLAIN, markers=None)
            return score(thoughts, choices, max_rows=2), network.num_forwards

    together, num_together = scores(Network(model))
    monkeypatch.setattr(Network, "takes_branches", False)
    apart, num_apart = scores(Network(model))
    assert_same_scores(together, apart, tolerance=1e-5)
    assert (num_together, num_apart) == (3 + 2, 3 + 3)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_windows_keep_choices_in_rows_of_their_own(family):
    assert not Network(tiny_model(family)).takes_branches


def test_equal_references_change_nothing():
    backbone, strong, _ = models("llama")
    same = References(Network(strong), Network(strong))
    context = Context.pad(CONTEXTS)
    common = {"backbone": Network(backbone), "markers": None}
    for gradient in ("detached", "through"):
        config = dataclasses.replace(BOTH, search_gradient=gradient)
        residual = dataclasses.replace(config, search_step_size=0.0)
        with torch.no_grad():
            searched = think(context, references=same, config=config, **common)
            plain = think(context, references=None, config=residual, **common)
        assert torch.equal(searched.thoughts_BTD, plain.thoughts_BTD)


def test_without_refinement_the_loop_is_plain_coconut():
    backbone, *_ = models("gpt2")
    context = CONTEXTS[1]
    with torch.no_grad():
        embeds = oracle.embed(backbone, context)
        wanted = []
        for _ in range(3):
            hidden = backbone.transformer(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
            wanted.append(hidden)
            embeds = torch.cat([embeds, hidden[None]])
        actual = think(
            Context.pad([context]),
            backbone=Network(backbone),
            references=None,
            config=PLAIN,
            markers=None,
        )
    torch.testing.assert_close(actual.thoughts_BTD[0], torch.stack(wanted))


def test_search_without_autograd_equals_the_gradient_of_the_stated_loss():
    thought, good, bad = torch.randn(3, 4, HIDDEN_SIZE, dtype=torch.float32).unbind()
    leaf = thought.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contrastive_loss(leaf, good, bad).sum(), leaf)
    actual = contrastive_step(thought, good, bad, step_size=STEP)
    torch.testing.assert_close(actual, thought - STEP * gradient)


def test_detached_search_takes_one_forward_a_thought_of_each_model():
    backbone, strong, weak = map(Network, models("llama"))
    config = dataclasses.replace(BOTH, latent_steps=4)
    with torch.no_grad():
        thoughts = think(
            Context.pad(CONTEXTS),
            backbone=backbone,
            references=References(strong, weak),
            config=config,
            markers=Markers(MARKER_IDS[:1], MARKER_IDS[1:]),
        )
        thoughts.stream.feed(thoughts.pending_BPD, thoughts.pending_mask_BP)
    # The backbone's fifth reads the last thought and the end marker, for the continuation.
    assert (backbone.num_forwards, strong.num_forwards, weak.num_forwards) == (5, 4, 4)


def test_the_loop_is_differentiable():
    backbone, *_ = models("llama")
    network = Network(backbone.requires_grad_(True))
    thoughts = think(
        Context.pad(CONTEXTS), backbone=network, references=None, config=PLAIN, markers=None
    )
    thoughts.thoughts_BTD[:, -1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_commits_in_the_backbones_dtype_and_refines_in_float32(dtype):
    backbone, strong, weak = (model.to(dtype) for model in models("llama"))
    config = dataclasses.replace(BOTH, latent_steps=1, search_step_size=1e-3)
    with torch.no_grad():
        actual = think(
            Context.pad(CONTEXTS),
            backbone=Network(backbone),
            references=References(Network(strong), Network(weak)),
            config=config,
            markers=None,
        )
        plain = think(
            Context.pad(CONTEXTS),
            backbone=Network(backbone),
            references=None,
            config=RefinementConfig(latent_steps=1),
            markers=None,
        )
    assert actual.thoughts_BTD.dtype == dtype
    # A step below half precision's resolution is rounded away by the commit, once.
    torch.testing.assert_close(actual.thoughts_BTD, plain.thoughts_BTD, rtol=0.01, atol=0.01)
