"""The oracle tests can fail: known ways to get the method wrong are far outside the tolerance."""

from __future__ import annotations

import pytest
import torch
from thought_cases import BOTH, expected, run

from lm_eval_latentref.latent import networks, search, thoughts

GAP = 1e-2
"""A hundred times the tolerance of the oracle tests."""


def blind_references(monkeypatch):
    """References that never see the refined thoughts."""
    monkeypatch.setattr(search.ReferenceStream, "commit", lambda self, thought_BD: None)


def residual_on_the_first_thought(monkeypatch):
    refine = thoughts._refine

    def mutant(raw_BD, previous, search, config):
        return refine(raw_BD, previous or [torch.zeros_like(raw_BD)], search, config)

    monkeypatch.setattr(thoughts, "_refine", mutant)


def mean_over_the_batch(monkeypatch):
    step = search.contrastive_step

    def mutant(thought_BD, good_BD, bad_BD, *, step_size):
        return step(thought_BD, good_BD, bad_BD, step_size=step_size / len(thought_BD))

    monkeypatch.setattr(search, "contrastive_step", mutant)


def position_off_by_one(monkeypatch):
    positions = networks.Network._positions

    def mutant(self, embeds_BLD, mask_BK, past):
        return positions(self, embeds_BLD, mask_BK, past) + (past > 0)

    monkeypatch.setattr(networks.Network, "_positions", mutant)


def reversed_direction(monkeypatch):
    """The sign as the paper prints it, towards the weak reference."""
    step = search.contrastive_step

    def mutant(thought_BD, good_BD, bad_BD, *, step_size):
        return step(thought_BD, good_BD, bad_BD, step_size=-step_size)

    monkeypatch.setattr(search, "contrastive_step", mutant)


def padding_between_context_and_thoughts(monkeypatch):
    """Harmless with full attention, wrong where a window counts columns."""

    def mutant(rows, *, device="cpu"):
        longest = max(map(len, rows))
        ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
        return thoughts.Context(ids, mask)

    monkeypatch.setattr(thoughts.Context, "pad", mutant)


MUTANTS = [
    blind_references,
    residual_on_the_first_thought,
    mean_over_the_batch,
    position_off_by_one,
    reversed_direction,
]


@pytest.mark.parametrize(
    ("mutant", "family"),
    [
        *((mutant, family) for mutant in MUTANTS for family in ("gpt2", "llama")),
        (padding_between_context_and_thoughts, "mistral"),
    ],
)
def test_oracle_tells_a_mutant(mutant, family, monkeypatch):
    wanted = expected(family, BOTH, markers=True)
    mutant(monkeypatch)
    actual, _ = run(family, BOTH, markers=True)
    gaps = [
        abs(value - wanted_value)
        for actual_row, wanted_row in zip(actual, wanted, strict=True)
        for (value, _), (wanted_value, _) in zip(actual_row, wanted_row, strict=True)
    ]
    assert max(gaps) > GAP
