"""Contexts that begin alike, their scores, and what the oracle says of them."""

from __future__ import annotations

import functools

import oracle
import torch
from thought_cases import MARKER_IDS, models
from tiny import random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.thoughts import Context, Markers, References, think

PREFIX = random_ids(12, seed=100)
# One row is so much longer that another begins after more padding than the prefix has columns.
CONTEXTS = [PREFIX + random_ids(n, seed=n) for n in (10, 1, 18, 12, 12)]
CONTINUATIONS = [[random_ids(2, seed=50 + row), random_ids(1, seed=60 + row)] for row in range(5)]
GAP = 1e-2
REFINED = {"latent_steps": 2, "memory_rate": 0.4, "search_step_size": 30.0}


def scores(family, config, trunk, rows=range(5)):
    backbone, strong, weak = map(Network, models(family))
    with torch.no_grad():
        thought = think(
            Context.pad([CONTEXTS[row] for row in rows], trunk=trunk),
            backbone=backbone,
            references=References(strong, weak) if config.searches else None,
            config=config,
            markers=Markers(MARKER_IDS[:1], MARKER_IDS[1:]),
        )
        return score(thought, [CONTINUATIONS[row] for row in rows], max_rows=8)


@functools.cache
def expected(family, config):
    networks = models(family)
    with torch.no_grad():
        return [
            [
                oracle.log_likelihood(
                    oracle.prefix_embeds(context, config, MARKER_IDS, *networks),
                    tokens,
                    networks[0],
                )
                for tokens in choices
            ]
            for context, choices in zip(CONTEXTS, CONTINUATIONS, strict=True)
        ]


def reasoner(family, **settings):
    members = (LoadedModel(model=tiny_model(family, s), identity={"name": s}) for s in range(3))
    names = ("backbone", "strong", "weak")
    loaded = dict(zip(names, members, strict=True))
    return Reasoner(LoadedSet(tokenizer=tiny_tokenizer(), **loaded), RefinementConfig(**settings))
