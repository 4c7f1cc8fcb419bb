"""Rows of different lengths are read in parts: little padding is read, and no result changes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prefix_cases import CONTEXTS, GAP, PREFIX, REFINED, expected, reasoner, scores
from thought_cases import CONFIGS, assert_same_scores
from tiny import FAMILIES, tiny_model, tiny_tokenizer

from lm_eval_latentref.latent import caches, prefixes, streams
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.streams import in_parts, num_padding

DISTINCT = list(dict.fromkeys(CONTEXTS))


@pytest.fixture(autouse=True)
def every_column_counts(monkeypatch):
    monkeypatch.setattr(streams, "SAVED_BY_A_PART", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_read_in_parts_equal_the_oracle(family):
    config = CONFIGS["both"]
    assert_same_scores(scores(family, config, None), expected(family, config))


def padding_on_the_right(parts, padding):
    pairs = zip(parts, padding, strict=True)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, num)) for part, num in pairs])


def test_the_oracle_shows_parts_that_are_padded_on_the_wrong_side(monkeypatch):
    monkeypatch.setattr(caches, "_joined", padding_on_the_right)
    config = CONFIGS["both"]
    pairs = zip(scores("llama", config, None), expected("llama", config), strict=True)
    assert max(abs(a[0] - b[0]) for x, y in pairs for a, b in zip(x, y, strict=True)) > GAP


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("steps", [0, 2])
def test_texts_of_rows_that_are_read_in_parts_are_those_of_each_alone(family, steps, monkeypatch):
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2)
    config = {**REFINED, "latent_steps": steps} if steps else {"latent_steps": 0}
    subject = reasoner(family, **config)
    together = subject.answer(CONTEXTS, max_new_tokens=5)
    alone = [subject.answer([context], max_new_tokens=5)[0] for context in CONTEXTS]
    assert [each.text for each in together] == [each.text for each in alone]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_context_that_begins_another_is_answered_beside_it(family, monkeypatch):
    """All its columns but the last are shared, so nothing of it is read before it is answered."""
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2)
    model = LoadedModel(model=tiny_model(family), identity={"name": family})
    loaded = LoadedSet(tokenizer=tiny_tokenizer(markers=False), backbone=model)
    subject = Reasoner(loaded, RefinementConfig(latent_steps=0))
    contexts = [PREFIX, PREFIX + PREFIX[:5]]
    together = subject.answer(contexts, max_new_tokens=5)
    alone = [subject.answer([context], max_new_tokens=5)[0] for context in contexts]
    assert [each.text for each in together] == [each.text for each in alone]


def test_every_column_that_is_read_holds_a_token_if_parts_may_be_small():
    subject = reasoner("llama", latent_steps=1)
    subject.think(DISTINCT)
    report = subject.accounting.report()
    assert report["padding_columns"] == 0
    assert report["forwards"]["backbone"] == len({len(context) for context in DISTINCT})
    num_markers = len(subject.markers.opening) * len(DISTINCT)
    assert report["columns_read"]["backbone"] == sum(map(len, DISTINCT)) + num_markers


@pytest.mark.parametrize("shared", [False, True])
def test_padding_that_is_read_is_counted(shared, monkeypatch):
    monkeypatch.setattr(streams, "SAVED_BY_A_PART", 14)
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2 if shared else 10**6)
    subject = reasoner("llama", latent_steps=1)
    for rows in subject.trunks.in_order(DISTINCT):
        subject.think([DISTINCT[row] for row in rows])
    report = subject.accounting.report()
    num_markers = len(subject.markers.opening) * len(DISTINCT)
    num_read = report["tokens_encoded"] - report["tokens_shared"] + report["padding_columns"]
    assert report["padding_columns"] > 0
    assert report["tokens_shared"] == (3 * len(PREFIX) if shared else 0)
    assert report["columns_read"]["backbone"] == num_read + num_markers


@given(padding=st.lists(st.integers(0, 90), min_size=1, max_size=40), saved=st.integers(1, 200))
def test_parts_hold_every_row_once_and_leave_less_padding_than_a_part_would_save(padding, saved):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "SAVED_BY_A_PART", saved)
        parts, left = in_parts(padding), num_padding(padding)
    assert Counter(row for rows, _ in parts for row in rows) == Counter(range(len(padding)))
    assert all(skipped == min(padding[row] for row in rows) for rows, skipped in parts)
    assert left == sum(padding[row] - skipped for rows, skipped in parts for row in rows)
    for rows, skipped in parts:
        last = max(padding[row] for row in rows)
        assert (last - skipped) * sum(padding[row] == last for row in rows) < saved
