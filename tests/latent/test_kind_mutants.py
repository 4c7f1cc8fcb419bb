"""The naive loop catches known ways to get a kind of thought wrong."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from kind_cases import CASES, ours, wanted

from lm_eval_latentref.latent import thoughts
from lm_eval_latentref.latent.kinds import KINDS


def map_applied_twice(kind, monkeypatch):
    vector = kind.vector

    def mutant(self, state):
        return vector(self, dataclasses.replace(state, hidden=vector(self, state)))

    monkeypatch.setattr(kind, "vector", mutant)


def first_thought_dropped(kind, monkeypatch):
    step = thoughts.Thinking.step

    def mutant(self, config):
        step(self, config)
        if len(self._thoughts) == 1:
            self._pending_BPD = self._pending_BPD * 0

    monkeypatch.setattr(thoughts.Thinking, "step", mutant)


def end_token_fed_twice(kind, monkeypatch):
    append = thoughts._append_end

    def mutant(columns_BLD, mask_BL, backbone, markers):
        return append(*append(columns_BLD, mask_BL, backbone, markers), backbone, markers)

    monkeypatch.setattr(thoughts, "_append_end", mutant)


def map_before_the_search(kind, monkeypatch):
    """The search moves what is fed, not the hidden state."""
    monkeypatch.setattr(kind, "is_identity", True)


OF_ANY_KIND = [first_thought_dropped, end_token_fed_twice]
OF_MAPS = [map_applied_twice, map_before_the_search]
MAPPED = ["realigned by ridge", "projected", "gaussian mean"]


@functools.cache
def naive_scores(name):
    return wanted("llama", CASES[name], refined=True)[0]


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        *((name, mutant) for name in ("continuous", "mixture", *MAPPED) for mutant in OF_ANY_KIND),
        *((name, mutant) for name in MAPPED for mutant in OF_MAPS),
    ],
)
def test_the_naive_loop_catches_a_mutant(name, mutant, monkeypatch):
    case = CASES[name]
    expected = naive_scores(name)
    mutant(KINDS[case.options["latent_kind"]], monkeypatch)
    actual = ours("llama", case.options, **case.refinement)[0]
    gaps = [
        abs(a - b)
        for each, other in zip(actual, expected, strict=True)
        for a, b in zip(each, other, strict=True)
    ]
    assert max(gaps) > 1e-2
