"""Log-likelihoods of whole texts: lm-eval's own, in batches that halve, and counted.

    class LatentRefLM(RollingLM): ...

A text of its own has no context to think about, so lm-eval's HFLM computes it; this only stands
between its loop over windows and its forward passes. Knows nothing of thoughts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.models.huggingface import HFLM

from lm_eval_latentref.harness.distributed import tell
from lm_eval_latentref.latent.batching import RowLimit, in_batches
from lm_eval_latentref.latent.reasoner import Reasoner

Request = tuple[Any, list[int], list[int]]
"""What lm-eval asks to be scored: its text, the ids of its context, those of its continuation."""


class RollingLM(HFLM):
    """HFLM whose windows of whole texts are halved when memory runs out, and counted."""

    reasoner: Reasoner
    _window_limit: RowLimit | None = None

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: no context to think about, so it is hf's."""
        self._window_limit = None
        with self._telling_cost():
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _score_windows(
        self, windows: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """One batch of hf's loop over the windows of rolling texts, halved if it does not fit."""
        # Kept from batch to batch, so that what did not fit is not tried again.
        self._window_limit = self._window_limit or RowLimit(len(windows), num_items=sys.maxsize)

        def work(part: Sequence[Request], _: int) -> list[tuple[float, bool]]:
            self.reasoner.backbone.activate()
            with self.reasoner.accounting.working():
                scores = HFLM._loglikelihood_tokens(self, list(part), disable_tqdm, len(part))
            num_read = sum(len(context) + len(text) - 1 for _, context, text in part)
            self.reasoner.accounting.count(tokens_encoded=num_read)
            return scores

        return [
            score
            for _, found in in_batches(windows, limit=self._window_limit, work=work)
            for score in found
        ]

    @contextmanager
    def _telling_cost(self) -> Iterator[None]:
        yield
        tell(self.rank, self.reasoner.accounting.report())
