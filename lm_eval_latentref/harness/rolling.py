"""Log-likelihoods of whole texts: HFLM's, with batches that are halved when memory runs out.

    class LatentRefLM(RollingLM): ...

A whole text has no context to think about, so HFLM computes its log-likelihood. This class adds the
halving and the cost counters between HFLM's loop over windows and its forward passes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_latentref.harness.lm_eval_seams import Request, SeamLM
from lm_eval_latentref.latent.batching import RowLimit, in_batches
from lm_eval_latentref.latent.reasoner import Reasoner


class RollingLM(SeamLM):
    """HFLM with batches of windows that are halved when memory runs out, and with their cost."""

    reasoner: Reasoner
    _window_limit: RowLimit
    _is_reported = False

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, computed by HFLM: there is no context to think about."""
        # Kept from batch to batch, so that a size that did not fit is not tried again.
        self._window_limit = self.row_limit(sys.maxsize)
        with self.counting_cost(), self.batches_of(self._window_limit.rows), self.scoring_windows():
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def score_windows(
        self, windows: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """Scores of one batch of HFLM's loop over windows, halved if it does not fit."""

        def work(part: Sequence[Request], _: int) -> list[tuple[float, bool]]:
            self.reasoner.backbone.activate()
            with self.reasoner.accounting.working():
                scores = self.score_windows_as_hf(part, disable_tqdm)
            num_read = sum(len(context) + len(text) - 1 for _, context, text in part)
            self.reasoner.accounting.count(tokens_encoded=num_read)
            return scores

        batches = in_batches(windows, limit=self._window_limit, work=work)
        return [score for _, scores in batches for score in scores]

    def row_limit(self, num_items: int) -> RowLimit:
        """How many of `num_items` rows to try at once.

        For `auto`, HFLM finds the size with a plain forward pass of max_length. Here the real work
        is tried, and halved if it does not fit. `auto:N` tries the largest size N times.
        """
        if self.batch_size != "auto":
            return RowLimit(self.batch_size, num_items=num_items)
        num_tries = max(1, int(self.batch_schedule))
        return RowLimit(self.max_batch_size, num_items=num_items, num_tries=num_tries)

    @contextmanager
    def batches_of(self, num_rows: int) -> Iterator[None]:
        """Make HFLM's loops take `num_rows` at once inside this block."""
        asked_for = self.batch_size_per_gpu
        self.batch_size_per_gpu = num_rows
        try:
            yield
        finally:
            self.batch_size_per_gpu = asked_for

    @contextmanager
    def counting_cost(self) -> Iterator[None]:
        """Count the cost of this block; the first block after a report restarts the counters."""
        if self._is_reported:
            self.reasoner.accounting.restart()
            self._is_reported = False
        yield
