"""Rows that stop early are as the naive loop has them, and leave the batch."""

from __future__ import annotations

import naive_kinds as naive
import pytest
import torch
from kind_cases import (
    CASES,
    CLOSING,
    CONTEXTS,
    CONTINUATIONS,
    FAMILIES,
    OPENING,
    assert_equal,
    entropies,
    ids,
    ours,
    reasoner,
    results_of,
    wanted,
)
from matrix import crossed
from tiny import tiny_model

from lm_eval_latentref.latent.contexts import Context, Markers
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.selection import find_stop
from lm_eval_latentref.latent.sharing import think_under

ENDED = {
    "mixture": ("mixture", CLOSING),
    "mixture, open": ("mixture", ""),
    "realigned": ("realigned", CLOSING),
    "realigned, open": ("realigned", ""),
    "continuous": ("continuous", CLOSING),
    "projected": ("projected", CLOSING),
    "gaussian mean": ("gaussian mean", CLOSING),
}


@pytest.mark.parametrize(("family", "ended"), crossed(FAMILIES, ENDED, every=4))
def test_rows_that_stop_early_equal_the_naive_loop(family, ended):
    name, closing = ENDED[ended]
    case = CASES[name]
    temperature = 0.6 if name == "mixture" else 1.0
    nats = entropies(family, temperature)
    stop = {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}
    stops = {"high": (nats, 1), "temperature": temperature}
    expected = wanted(family, case, stops=stops, refined=True, closing=ids(closing))
    assert len(set(expected[2])) > 1, "all rows stop together, which shows nothing"
    for batch_size in (1, 2, 5):
        actual = ours(
            family,
            {**case.options, **stop},
            batch_size=batch_size,
            **case.refinement,
            latent_markers=f"{OPENING}|{closing}",
        )
        assert_equal(actual, expected)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_row_stops_at_the_end_token_which_is_fed_once(family):
    case = CASES["mixture"]
    model = tiny_model(family)
    # What ends thoughts begins with the token that some context would write next.
    at = list(naive.embed(model, [*CONTEXTS[1], *ids(OPENING)]))
    closing = (int(naive.read(model, at)[1].argmax()), 7)
    expected = wanted(family, case, stops={"end": closing[0]}, closing=closing)
    assert 0 in expected[2]
    assert set(expected[2]) != {0}
    subject = reasoner(family, case.options, latent_stop="end_token")
    subject.markers = Markers(ids(OPENING), closing)
    subject.stop = find_stop(subject.config, subject.markers)
    for batch_size in (1, 5):
        assert_equal(results_of(subject, batch_size), expected)


def test_patience_counts_steps_in_a_row():
    case = CASES["realigned"]
    nats = entropies("llama")
    for patience in (2, 3):
        stop = {"latent_stop": "low_entropy", "stop_entropy": nats, "stop_patience": patience}
        expected = wanted("llama", case, stops={"low": (nats, patience)})
        assert_equal(ours("llama", case.options, **stop), expected)


def test_logits_are_computed_where_a_kind_needs_them_and_for_rows_still_thinking_only():
    nats = entropies("llama", 0.6)
    stop = {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}

    def rows_projected(options):
        subject = reasoner("llama", options)
        seen = []
        head = subject.backbone.causal_lm.lm_head
        handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2]))
        numbers = {
            row: group.num_thoughts
            for rows, group in subject.think_in_groups(CONTEXTS)
            for row in rows
        }
        handle.remove()
        return sum(seen), numbers

    assert rows_projected({"latent_kind": "continuous", "latent_steps": 3})[0] == 0
    assert rows_projected({"latent_kind": "realigned", "latent_steps": 3})[0] == 0
    assert rows_projected({"latent_kind": "mixture", "latent_steps": 3})[0] == 3 * len(CONTEXTS)
    total, numbers = rows_projected({"latent_kind": "mixture", **stop})
    # One look before each thought, and one more by which a row stops.
    assert total == sum(number + (number < 4) for number in numbers.values())


def test_thoughts_of_each_context_are_in_the_cost():
    nats = entropies("llama")
    stop = {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}
    subject = reasoner("llama", CASES["realigned"].options, **stop)
    numbers = {
        row: group.num_thoughts for rows, group in subject.think_in_groups(CONTEXTS) for row in rows
    }
    report = subject.accounting.report()
    assert report["thought_steps"] == sum(numbers.values())
    total = subject.accounting.of_all([report])
    assert total["thoughts_per_context"] == pytest.approx(sum(numbers.values()) / 5)


@pytest.mark.parametrize(
    ("name", "closing"), crossed(["mixture", "realigned", "projected"], [CLOSING, ""], every=3)
)
def test_settings_that_share_their_reading_stop_as_each_does_alone(name, closing):
    case, nats = CASES[name], entropies("llama", 0.6 if name == "mixture" else 1.0)
    options = {**case.options, "latent_stop": "high_entropy", "stop_entropy": nats}
    options["latent_markers"] = f"{OPENING}|{closing}"
    grid = [
        {**options, "latent_steps": steps, **refinement}
        for steps in (0, 2, 4)
        for refinement in ({}, {"memory_rate": 0.3}, case.refinement)
    ]
    together = reasoner("llama", options, **case.refinement)
    actual = {}
    with torch.no_grad():
        for number, groups in think_under(
            Context.pad(CONTEXTS),
            [reasoner("llama", each).config for each in grid],
            backbone=together.backbone,
            references=together.references,
            markers=together.markers,
            kind=together.kind,
            stop=together.stop,
        ):
            for rows, thoughts in groups:
                scores = score(thoughts, [CONTINUATIONS[row] for row in rows], max_rows=3)
                for row, choices in zip(rows, scores, strict=True):
                    likelihoods = [choice.log_likelihood for choice in choices]
                    actual[number, row] = (thoughts.num_thoughts, likelihoods)
    for number, each in enumerate(grid):
        scores, _, numbers = results_of(reasoner("llama", each))
        for row, (likelihoods, num_thoughts) in enumerate(zip(scores, numbers, strict=True)):
            assert actual[number, row][0] == num_thoughts
            assert actual[number, row][1] == pytest.approx(likelihoods, abs=1e-4)
    most = [number for number, each in enumerate(grid) if each["latent_steps"] == 4]
    assert len({actual[number, row][0] for number in most for row in range(len(CONTEXTS))}) > 1
