"""The lm-eval model class for many settings at once, which share models and contexts.

    model = SweepModel(pretrained=FOLDER, latent_steps=6, search_step_size=1.0)
    groups = group_by_context(model.encode(task.requests))
    for number, scores in model.score_under(groups[:8], configs, max_rows=8): ...

Text becomes token ids as in `LatentRefLM`, so a setting gets the same numbers as by `lm_eval
--model latentref`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lm_eval_latentref.harness.lm_eval_seams import Request
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.batching import Group, Tokens
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.scoring import Score, score
from lm_eval_latentref.latent.sharing import think_under
from lm_eval_latentref.latent.thoughts import Context

Scores = list[list[Score | None]]
"""The score of each continuation of each group; None if a thought overflowed."""


class SweepModel(LatentRefLM):
    """`LatentRefLM` for several settings, loaded with the models that any of them needs.

    Long contexts are cut so that the largest number of thoughts fits, and all settings share them.
    """

    _pairs: list[tuple[Tokens, Tokens]]
    _end: Tokens = ()

    def encode(
        self, requests: Sequence[Any], *, ending: bool = False
    ) -> list[tuple[Tokens, Tokens]]:
        """The token ids of each request: (context, continuation), with contexts cut to fit.

        Args:
            requests: lm-eval Instances of the type loglikelihood.
            ending: whether the end-of-sequence token is added to each continuation.
        """
        self._end = (self.eot_token_id,) if ending else ()
        self.loglikelihood(list(requests), disable_tqdm=True)
        return self._pairs

    def score_pairs(
        self, requests: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """Keeps the pairs for `encode`; all of HFLM's ways of encoding end in this call."""
        self._pairs = self.fit_pairs(
            [(text, context, [*tokens, *self._end]) for text, context, tokens in requests]
        )
        return [(math.nan, False)] * len(requests)

    def score_under(
        self, groups: Sequence[Group], configs: Sequence[RefinementConfig], *, max_rows: int
    ) -> Iterator[tuple[int, Scores]]:
        """Yields the index of each config with its scores of `groups`, in any order.

        Args:
            groups: the contexts and continuations of one batch.
            configs: the options of each setting.
            max_rows: the maximum number of continuations in one forward pass.
        """
        reasoner = self.reasoner
        contexts = [group.context for group in groups]
        trunk, device = reasoner.trunks.of(contexts), reasoner.backbone.device
        with torch.no_grad(), self.autocast():
            for number, thoughtful in think_under(
                Context.pad(contexts, device=device, trunk=trunk),
                configs,
                backbone=reasoner.backbone,
                references=reasoner.references,
                markers=reasoner.markers,
                kind=reasoner.kind,
                stop=reasoner.stop,
            ):
                scores: Scores = [[] for _ in groups]
                for rows, thoughts in thoughtful:
                    asked = [groups[row].continuations for row in rows]
                    of_rows = score(thoughts, asked, max_rows=max_rows)
                    finite_B = thoughts.finite_BT3.flatten(1).all(1).tolist()
                    for row, choices, finite in zip(rows, of_rows, finite_B, strict=True):
                        scores[row] = _if_finite(choices) if finite else [None] * len(choices)
                yield number, scores


def _if_finite(choices: Sequence[Score]) -> list[Score | None]:
    return [choice if math.isfinite(choice.log_likelihood) else None for choice in choices]


def forwards(reasoner: Reasoner) -> dict[str, int]:
    """The number of forward passes so far of backbone, strong and weak."""
    names = ("backbone", "strong", "weak")
    return {
        name: network.num_forwards
        for name, network in zip(names, reasoner.networks(), strict=False)
    }
