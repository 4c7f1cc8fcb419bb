"""The reported cost equals the work that was done, and counting changes no result."""

from __future__ import annotations

import dataclasses
import time

import pytest
from tiny import random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref.latent import accounting
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.reasoner import Reasoner

CONFIG = RefinementConfig(latent_steps=3, memory_rate=0.4, search_step_size=10.0)
CONTEXTS = [random_ids(length, seed=length) for length in (5, 9)]
CHOICES = [[random_ids(3, seed=1), random_ids(2, seed=2)]] * 2


def reasoner(config=CONFIG, *, same=False):
    def loaded(seed):
        identity = {"name": str(seed)}
        return LoadedModel(model=models[0 if same else seed], identity=identity)

    models = [tiny_model("llama", seed) for seed in range(3)]
    return Reasoner(
        LoadedSet(tokenizer=tiny_tokenizer(), backbone=loaded(0), strong=loaded(1), weak=loaded(2)),
        config,
    )


@pytest.mark.parametrize("same", [False, True])
def test_forwards_are_counted_for_each_model_even_where_all_are_one(same):
    subject = reasoner(same=same)
    subject.score(CONTEXTS, CHOICES, max_rows=2)
    # Thoughts, then the end marker with the last thought, then the choices side by side.
    assert subject.accounting.report()["forwards"] == {"backbone": 5, "strong": 3, "weak": 3}


def test_thoughts_and_tokens_are_counted_once_for_each_distinct_context():
    subject = reasoner()
    subject.score([CONTEXTS[0]] * 2, CHOICES, max_rows=4)
    report = subject.accounting.report()
    assert (report["thought_steps"], report["tokens_encoded"]) == (3, 5)


def test_columns_without_a_token_are_counted_for_one_model():
    subject = reasoner()
    subject.score(CONTEXTS, CHOICES, max_rows=2)
    assert subject.accounting.report()["padding_columns"] == 9 - 5


def test_text_is_counted_without_padding_and_forwards_of_generate_are_seen():
    subject = reasoner(dataclasses.replace(CONFIG, search_step_size=0.0))
    texts = subject.ask_all(["Is Tom a gorpus?", "x"], max_new_tokens=5)
    report = subject.accounting.report()
    assert 0 < report["tokens_generated"] <= 5 * len(texts)
    assert 3 < report["forwards"]["backbone"] <= 3 + 5
    subject.count_generated([[7, 8, 0, 0], [9, 0, 0, 0]])
    later = subject.accounting.report()
    assert later["tokens_generated"] == report["tokens_generated"] + 3


def test_each_phase_takes_the_time_of_its_own_forwards(monkeypatch):
    subject = reasoner()
    ticks = iter(range(100))
    monkeypatch.setattr(accounting.time, "perf_counter", lambda: float(next(ticks)))
    subject.score(CONTEXTS, CHOICES, max_rows=4)
    # One tick for each change of phase: the first thought of all three models encodes.
    seconds = subject.accounting.report()["seconds"]
    assert seconds == {"load": 0.0, "encode": 1.0, "think": 1.0, "decode": 1.0}


def test_the_phases_fill_the_working_time_and_nothing_outside_counts():
    subject = reasoner()
    start = time.perf_counter()
    subject.score(CONTEXTS, CHOICES, max_rows=4)
    wall = time.perf_counter() - start
    time.sleep(0.05)
    seconds = subject.accounting.report()["seconds"]
    assert 0.5 * wall < sum(seconds.values()) <= wall + 1e-3


def test_memory_is_at_least_that_of_the_models():
    subject = reasoner()
    peak = subject.accounting.report()["peak_memory_bytes"]["host"]
    weights = subject.backbone.causal_lm.parameters()
    assert peak > sum(weight.numel() * weight.element_size() for weight in weights)


def test_no_hook_outlives_the_work_it_counts():
    model = tiny_model("llama")
    loaded = LoadedSet(
        tokenizer=tiny_tokenizer(), backbone=LoadedModel(model=model, identity={"name": "a"})
    )
    config = RefinementConfig(latent_steps=1)
    for _ in range(1000):
        last = Reasoner(loaded, config)
    last.think(CONTEXTS)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_two_reasoners_on_one_model_each_count_their_own():
    model = tiny_model("llama")
    loaded = LoadedSet(
        tokenizer=tiny_tokenizer(), backbone=LoadedModel(model=model, identity={"name": "a"})
    )
    first, second = (Reasoner(loaded, RefinementConfig(latent_steps=2)) for _ in range(2))
    with first.accounting.working():
        second.think(CONTEXTS)
        first.think(CONTEXTS[:1])
    for reasoner, tokens in ((first, 5), (second, 14)):
        report = reasoner.accounting.report()
        assert (report["forwards"], report["tokens_encoded"]) == ({"backbone": 2}, tokens)
