"""Contexts, continuations and settings; their scores by the package and by the oracle.

scores, thoughts = run("llama", BOTH, markers=True)
assert_same_scores(scores, expected("llama", BOTH, markers=True))
"""

from __future__ import annotations

import dataclasses
import functools

import oracle
import pytest
import torch
from tiny import HIDDEN_SIZE, random_ids, tiny_model

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.thoughts import Context, Markers, References, Thoughts, think

# Several times d/2: in smaller units the search moves thoughts less than the tolerance.
STEP = 3.0 * HIDDEN_SIZE / 2
CONTEXTS = [random_ids(n, seed=n) for n in (5, 17, 11, 1, 9)]
CONTINUATIONS = [
    [random_ids(3, seed=50 + row), random_ids(1, seed=60 + row), random_ids(5, seed=70 + row)]
    for row in range(len(CONTEXTS))
]
MARKER_IDS = (297, 298)

PLAIN = RefinementConfig(latent_steps=3)
BOTH = RefinementConfig(latent_steps=3, memory_rate=0.4, search_step_size=STEP)
CONFIGS = {
    "no thought": RefinementConfig(),
    "one thought": RefinementConfig(latent_steps=1),
    "plain": PLAIN,
    "residual": RefinementConfig(latent_steps=3, memory_rate=0.4),
    "search": RefinementConfig(latent_steps=3, search_step_size=STEP),
    "both": BOTH,
    "both, reversed": dataclasses.replace(BOTH, search_step_size=-STEP),
    "two search steps": dataclasses.replace(BOTH, search_steps=2, search_step_size=STEP / 2),
    "through": dataclasses.replace(BOTH, search_gradient="through"),
    "through, two steps": dataclasses.replace(BOTH, search_gradient="through", search_steps=2),
}


def models(family):
    return tiny_model(family, 0), tiny_model(family, 1), tiny_model(family, 2)


def run(family, config, *, markers, batch_size=5, order=None, max_rows=4, max_columns=1000):
    """The package's scores and thoughts, in the order of CONTEXTS."""
    backbone, strong, weak = models(family)
    references = References(Network(strong), Network(weak)) if config.searches else None
    network = Network(backbone)
    order = list(order or range(len(CONTEXTS)))
    scores, actual = {}, {}
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts = [
                think(
                    part,
                    backbone=network,
                    references=references,
                    config=config,
                    markers=Markers(MARKER_IDS[:1], MARKER_IDS[1:]) if markers else None,
                )
                for part in Context.pad([CONTEXTS[row] for row in rows]).in_parts(max_columns)
            ]
            thoughts = Thoughts.join(parts)
            assert thoughts.finite_BT3.all()
            results = score(thoughts, [CONTINUATIONS[row] for row in rows], max_rows=max_rows)
            for row, result, thought_TD in zip(rows, results, thoughts.thoughts_BTD, strict=True):
                scores[row], actual[row] = result, thought_TD
    everyone = range(len(CONTEXTS))
    return [scores[row] for row in everyone], [actual[row] for row in everyone]


@functools.cache
def expected(family, config, *, markers):
    backbone, strong, weak = models(family)
    with torch.no_grad():
        return [
            [
                oracle.log_likelihood(
                    oracle.prefix_embeds(
                        context, config, MARKER_IDS if markers else None, backbone, strong, weak
                    ),
                    continuation,
                    backbone,
                )
                for continuation in choices
            ]
            for context, choices in zip(CONTEXTS, CONTINUATIONS, strict=True)
        ]


def assert_same_scores(actual, wanted, tolerance=1e-4):
    for actual_row, wanted_row in zip(actual, wanted, strict=True):
        for (value, greedy), (wanted_value, wanted_greedy) in zip(
            actual_row, wanted_row, strict=True
        ):
            assert value == pytest.approx(wanted_value, abs=tolerance)
            assert greedy == wanted_greedy
