"""The loss of training and its gradients, against an oracle without caches and the models' own."""

from __future__ import annotations

import sys

import oracle
import pytest
import torch
from tiny import random_ids, tiny_model

from lm_eval_latentref.latent import streams
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds import Pause
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughts import Markers
from lm_eval_latentref.training.curriculum import Curriculum, Problem, cot_row
from lm_eval_latentref.training.loss import loss_sum, num_labelled

MARKERS = Markers((290,), (291,))
PAUSE_ID = 292

PROBLEMS = [
    Problem(
        random_ids(4 + 2 * n, seed=n),
        tuple(random_ids(2 + (n + step) % 3, seed=10 * n + step) for step in range(3)),
        random_ids(2 + n % 2, seed=100 + n),
    )
    for n in range(4)
]


def trainable(family):
    # In eval mode: dropout would make any two computations differ.
    return tiny_model(family).double().requires_grad_()


def gradients(model):
    return {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


def assert_equal_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        # Thoughts and some families' norms pass through float32, in both.
        assert (actual[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def oracle_loss(row, model, markers):
    """One row, no cache, everything recomputed for each thought."""
    config = RefinementConfig(latent_steps=row.num_thoughts)
    ids = (*markers.opening, *markers.closing) if markers else None
    prefix = oracle.prefix_embeds(row.context, config, ids, model)
    text = oracle.embed(model, row.target[:-1])
    logits = model(inputs_embeds=torch.cat([prefix, text])[None], use_cache=False).logits[0]
    predicted = logits[len(prefix) - 1 :]
    return torch.nn.functional.cross_entropy(predicted, torch.tensor(row.target), reduction="sum")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("saved", [1, sys.maxsize], ids=["in parts", "at once"])
def test_loss_and_gradients_of_every_stage_equal_the_oracle(family, stage, saved, monkeypatch):
    monkeypatch.setattr(streams, "SAVED_BY_A_PART", saved)
    curriculum = Curriculum(c_thought=2, max_latent_stage=2)
    rows = [curriculum.row(problem, stage) for problem in PROBLEMS]
    ours, theirs = trainable(family), trainable(family)
    network = Network(ours)
    loss = loss_sum(rows, network=network, markers=MARKERS)
    loss.backward()
    num_parts = len(rows) if saved == 1 and network.reads_in_parts else 1
    assert network.num_forwards == num_parts + rows[0].num_thoughts
    expected = torch.stack([oracle_loss(row, theirs, MARKERS) for row in rows]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-7)
    assert_equal_gradients(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("markers", [None, MARKERS])
def test_stage_0_equals_cot_training_by_the_models_own_loss(markers):
    rows = [Curriculum().row(problem, 0) for problem in PROBLEMS]
    ours, theirs = trainable("gpt2"), trainable("gpt2")
    (loss_sum(rows, network=Network(ours), markers=markers) / num_labelled(rows)).backward()
    around = [*markers.opening, *markers.closing] if markers else []
    expected = 0.0
    for problem in PROBLEMS:
        row = cot_row(problem)
        before = [*problem.question, *around]
        ids = torch.tensor([[*before, *row.target]])
        labels = torch.tensor([[*[-100] * len(before), *row.target]])
        expected = expected + theirs(input_ids=ids, labels=labels).loss * len(row.target)
    (expected / num_labelled(rows)).backward()
    assert_equal_gradients(gradients(ours), gradients(theirs))


def test_pause_tokens_are_one_pass_over_the_ids_of_the_pause_token():
    row = Curriculum(max_latent_stage=2).row(PROBLEMS[1], 2)
    ours, theirs = trainable("llama"), trainable("llama")
    network = Network(ours)
    loss = loss_sum([row], network=network, markers=MARKERS, kind=Pause(PAUSE_ID))
    loss.backward()
    assert network.num_forwards == 1
    before = [*row.context, *MARKERS.opening, *[PAUSE_ID] * 2, *MARKERS.closing]
    ids = torch.tensor([[*before, *row.target]])
    labels = torch.tensor([[*[-100] * len(before), *row.target]])
    expected = theirs(input_ids=ids, labels=labels).loss * len(row.target)
    expected.backward()
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert_equal_gradients(gradients(ours), gradients(theirs))
    assert gradients(ours)["model.embed_tokens.weight"][PAUSE_ID].abs().sum() > 0


def test_masks_and_positions_hide_the_padding():
    model, seen = tiny_model("llama"), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    rows = [Curriculum().row(problem, 1) for problem in PROBLEMS[:2]]
    loss_sum(rows, network=Network(model), markers=MARKERS)
    context, rest = seen
    # Contexts of 4 and 6 tokens and the start marker, padded on the left ...
    assert context["attention_mask"].int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert context["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3, 4], list(range(7))]
    # ... then thought, end marker and text: padding there comes after all that is labelled.
    num_text = max(len(row.target) for row in rows) - 1
    assert rest["inputs_embeds"].shape[1] == 2 + num_text
    assert rest["position_ids"][:, 0].tolist() == [5, 7]
    assert rest["attention_mask"][:, 7:].all()


def test_logits_are_computed_at_labelled_positions_only():
    model, shapes = tiny_model("gpt2"), []
    model.lm_head.register_forward_pre_hook(
        lambda _, args: shapes.append(args[0].shape[:-1].numel())
    )
    rows = [Curriculum().row(problem, 2) for problem in PROBLEMS]
    loss_sum(rows, network=Network(model), markers=MARKERS)
    assert shapes == [num_labelled(rows)]
