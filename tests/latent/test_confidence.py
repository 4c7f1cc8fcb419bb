"""LTPO's steps towards where the model is confident equal the naive loop's."""

from __future__ import annotations

import naive_kinds as naive
import pytest
import torch
from kind_cases import (
    CASES,
    CLOSING,
    CONTEXTS,
    CONTINUATIONS,
    OPENING,
    D,
    draws_of,
    entropies,
    ids,
    ours,
    reasoner,
)
from matrix import crossed
from tiny import tiny_model


@pytest.mark.parametrize(
    ("name", "closing", "stops_early"),
    crossed(["realigned", "mixture", "projected"], [CLOSING, ""], [False, True], every=2),
)
def test_confidence_steps_equal_the_naive_loop(name, closing, stops_early):
    options = {"confidence_steps": 3, "confidence_noise": 0.2, "thought_seed": 3}
    model = tiny_model("llama")
    temperature = 0.6 if name == "mixture" else 1.0
    nats = entropies("llama", temperature)
    if stops_early:
        options |= {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}
    expected = []
    with torch.no_grad():
        for context, continuations in zip(CONTEXTS, CONTINUATIONS, strict=True):
            vector = CASES[name].vector(model)
            stops = naive.Stops(high=(nats, 1), temperature=temperature) if stops_early else None
            columns, actual = naive.think(
                model, context, vector, cap=4, opening=ids(OPENING), stops=stops
            )
            num = len(actual)
            before, after = columns[: len(columns) - num], list(naive.embed(model, ids(closing)))

            def draw(i, draws=draws_of(context), num=num):  # noqa: B008
                return draws.normal("confidence", step=i, size=num * D).view(num, D)

            better = actual and naive.more_confident(
                model, before, actual, after, draw, steps=3, noise=0.2
            )
            columns = [*before, *better, *after]
            expected.append([naive.log_likelihood(model, columns, c) for c in continuations])
    for batch_size in (2, 5):
        actual, _, _ = ours(
            "llama",
            CASES[name].options,
            batch_size=batch_size,
            **options,
            latent_markers=f"{OPENING}|{closing}",
        )
        for row, expected_row in zip(actual, expected, strict=True):
            assert row == pytest.approx(expected_row, abs=1e-3)


def test_no_confidence_steps_are_bit_for_bit_nothing():
    ((_, plain),) = reasoner("llama", CASES["projected"].options).think_in_groups(CONTEXTS)
    none = reasoner("llama", CASES["projected"].options, confidence_steps=0)
    ((_, same),) = none.think_in_groups(CONTEXTS)
    assert torch.equal(plain.thoughts_BTD, same.thoughts_BTD)
