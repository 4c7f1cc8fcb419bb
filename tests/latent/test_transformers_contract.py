"""What `latent/transformers_seams.py` rests on holds in the installed transformers."""

from __future__ import annotations

import warnings

import pytest
from tiny import FAMILIES, random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.transformers_seams import cache_argument, own_cache_argument

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("family", FAMILIES)
def test_no_call_of_ours_uses_a_name_that_transformers_gave_up(family):
    models = [
        LoadedModel(model=tiny_model(family, seed), identity={"name": str(seed)})
        for seed in range(3)
    ]
    loaded = LoadedSet(
        tokenizer=tiny_tokenizer(), backbone=models[0], strong=models[1], weak=models[2]
    )
    contexts = [random_ids(4, seed=1), random_ids(7, seed=2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        reasoner = Reasoner(loaded, RefinementConfig(latent_steps=2, search_step_size=5.0))
        reasoner.score(contexts, [[random_ids(3, seed=3)]] * 2, max_rows=2)
        reasoner.answer(contexts, max_new_tokens=3)


def test_each_family_takes_the_cache_under_the_name_that_generate_uses():
    forwards = [tiny_model(family).base_model.forward for family in FAMILIES]
    assert {cache_argument(forward) for forward in forwards} == {own_cache_argument()}
