"""Pause tokens as thoughts: one pass over the pause token's embedding, and nothing to refine."""

from __future__ import annotations

import pytest
import torch
from tiny import random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.protocol import LATENT, MARKERS
from lm_eval_latentref.latent.reasoner import Reasoner

PAUSES = RefinementConfig(latent_steps=3, latent_kind="pause")


def reasoner(config, tokenizer=None):
    loaded = LoadedModel(model=tiny_model("llama"), identity={"name": "tiny"})
    return Reasoner(LoadedSet(tokenizer=tokenizer or tiny_tokenizer(), backbone=loaded), config)


def test_scores_are_those_of_the_pause_ids_in_the_prompt():
    pausing = reasoner(PAUSES)
    start, end, pause = (pausing.tokenizer.get_vocab()[MARKERS[i]] for i in range(3))
    contexts = [random_ids(5, seed=1), random_ids(9, seed=2)]
    continuation = random_ids(3, seed=3)
    scores = pausing.score(contexts, [[continuation]] * 2, max_rows=4)
    model = tiny_model("llama")
    for context, (score,) in zip(contexts, scores, strict=True):
        ids = torch.tensor([[*context, start, *[pause] * 3, end, *continuation]])
        logits = model(ids).logits[0, -4:-1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(continuation)[:, None]).sum()
        assert score.log_likelihood == pytest.approx(expected.item(), abs=1e-4)


def test_writing_goes_on_from_the_pauses():
    pausing = reasoner(PAUSES)
    question = "Is Tom a lempus?"
    answer = pausing.ask(question, max_new_tokens=5)
    vocabulary = pausing.tokenizer.get_vocab()
    context = pausing.tokenizer.encode(question + "\n")
    start, end, pause = (vocabulary[marker] for marker in MARKERS)
    ids = torch.tensor([[*context, start, *[pause] * 3, end]])
    output = tiny_model("llama").generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
    )
    expected = pausing.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer.text == expected
    assert answer.thoughts.shape == (3, 32)


@pytest.mark.parametrize("option", [{"memory_rate": 0.5}, {"search_step_size": 1.0}])
def test_pause_tokens_are_not_refined(option):
    with pytest.raises(LatentRefError, match="cannot be refined"):
        RefinementConfig(latent_steps=3, latent_kind="pause", **option)


def test_without_the_tokens_there_is_no_pausing():
    with pytest.raises(LatentRefError, match=r"latent\|> as single tokens"):
        reasoner(PAUSES, tiny_tokenizer(markers=False))
    assert LATENT in tiny_tokenizer().get_vocab()


def test_an_unknown_kind_is_named():
    with pytest.raises(LatentRefError, match="latent_kind=discrete"):
        RefinementConfig.parse({"latent_kind": "discrete"})
