"""A prefix shared by requests is read once, and every answer equals that without sharing."""

from __future__ import annotations

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from matrix import crossed
from tiny_lm import GREEDY, REFINED, assert_close, latentref, requests

from lm_eval_latentref.latent import prefixes

SHOTS = "Every lempus is a gorpus. Tom is a lempus. Is Tom a gorpus?\n### yes\n"
OTHER_SHOTS = "the average of 3 numbers is 12 .\n### 12\n"
QUESTIONS = ["Is Tom a wumpus?\n", "x", "First, add the two. Then halve it.\n", "12 ", "a"]
PROMPTS = [shots + question for question in QUESTIONS for shots in (SHOTS, OTHER_SHOTS)]
CONTINUATIONS = ["### yes", " halve it."]


@pytest.fixture
def sharing(monkeypatch):
    """Switches on the sharing of these short prefixes (True), or switches off all sharing."""

    def switch(on):
        monkeypatch.setattr(prefixes, "MIN_TOKENS", 2 if on else 10**6)
        monkeypatch.setattr(prefixes, "MIN_SAVED", 40)

    switch(True)
    return switch


@pytest.fixture(scope="module")
def hf(folders):
    return HFLM(folders["plain"], device="cpu", dtype="float32", batch_size=3)


def pairs():
    return requests([(prompt, text) for prompt in PROMPTS for text in CONTINUATIONS])


def texts(**options):
    return requests([(prompt, {**GREEDY, **options}) for prompt in PROMPTS])


def num_shared(lm):
    return lm.reasoner.accounting.report()["tokens_shared"]


def test_without_thoughts_scores_are_those_of_hf(folders, hf, sharing):
    lm = latentref(folders, "plain", batch_size=3)
    assert_close(lm.loglikelihood(pairs()), hf.loglikelihood(pairs()))
    assert num_shared(lm) > 0


@pytest.mark.parametrize("extra", [{}, {"repetition_penalty": 1.3}, {"until": ["a", "\n"]}])
def test_without_thoughts_texts_are_those_of_hf(folders, hf, sharing, extra):
    lm = latentref(folders, "plain", batch_size=3)
    assert lm.generate_until(texts(**extra)) == hf.generate_until(texts(**extra))
    assert num_shared(lm) > 0


def test_without_thoughts_texts_are_those_of_hf_where_contexts_are_cut(folders, sharing):
    long = requests([(SHOTS * 3 + question, GREEDY) for question in QUESTIONS] * 2)
    lm = latentref(folders, "plain", max_length=60)
    hf = HFLM(folders["plain"], device="cpu", dtype="float32", max_length=60, batch_size=4)
    assert lm.generate_until(long) == hf.generate_until(long)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "temperature": 0.7}])
def test_without_thoughts_beams_and_samples_are_hfs_own(folders, hf, sharing, options):
    lm, instances = latentref(folders, "plain", batch_size=3), texts(**options)[:6]
    written = []
    for side in (lm, hf):
        torch.manual_seed(0)
        written.append(side.generate_until(instances))
    assert written[0] == written[1]
    assert num_shared(lm) == 0


STOPPING = {"latent_steps": 4, "latent_stop": "low_entropy", "stop_entropy": 3.0}


@pytest.mark.parametrize(
    "settings",
    crossed(
        [
            {"latent_steps": 2},
            REFINED,
            {**STOPPING, "stop_patience": 1},
            {"latent_steps": 2, "thought_noise": 0.5},
        ],
        every=2,
    ),
)
def test_with_thoughts_nothing_changes(folders, sharing, settings):
    answers, shared = [], []
    mixed = [*texts(), *texts(max_gen_toks=5)[::3]]
    for on in (False, True):
        sharing(on)
        lm = latentref(folders, batch_size=3, **settings)
        answers.append((lm.loglikelihood(pairs()), lm.generate_until(mixed)))
        shared.append(num_shared(lm))
    assert_close(answers[1][0], answers[0][0])
    assert answers[1][1] == answers[0][1]
    assert shared[0] == 0 < shared[1]
